"""Methods of the family `elastic` by flags: runs, resumed, and refusals."""

import json
import math

import pytest

from fedms_jax.shell import build
from fedms_jax.shell.methods import elastic
from fedms_jax.simulation.state import Preempted
from tests import world
from tests.shell.methods.methods_test import Stop, bench, simulate

FLAGS = {
  'lonas': {'lonas__search_rounds': 2, 'lonas__candidates': 4},
  'fedot': {'fedot__ends': 1},
  'fedpft': {
    'fedpft__steps': 60,
    'fedpft__interval': 1,
    'fedpft__align_steps': 2,
    'fedpft__batch_size': 4,
  },
  'raffm': {'raffm__head': '1,0.5', 'model__heads': 2},
}
MODELS = {
  'lonas': {'pretrained', 'global', 'whole'},
  'fedot': {'pretrained', 'global', 'emulator'},
  'fedpft': {'pretrained', 'global', 'emulator'},
  'raffm': {'pretrained', 'global'},
}


@pytest.mark.slow
@pytest.mark.parametrize('name', elastic.STAGES)
def test_a_run_an_evaluation_and_a_resumed_run(name, tmp_path):
  made = bench(name, **FLAGS[name], lora__ranks='1,2' * (name == 'lonas'))
  stages, options = elastic.STAGES[name](made), build.options(made.config)
  found, simulation, state, records = simulate(
    stages, options, tmp_path / 'whole'
  )
  assert len(records) == sum(stage.rounds for stage in stages)
  assert all(math.isfinite(record['train_loss']) for record in records)
  assert set(found['models']) == MODELS[name]
  for stage in stages:
    entry = simulation.ledgers[stage.name]
    # What the server does by itself sends nothing.
    assert (entry.bytes_up > 0) != stage.central and entry.client_flops > 0
  for _ in range(len(records) - 1):
    with pytest.raises(Preempted):
      simulate(stages, options, tmp_path / 'pieces', Stop())
  again, other, resumed, _ = simulate(stages, options, tmp_path / 'pieces')
  world.same((resumed.roles, resumed.memory), (state.roles, state.memory))
  assert json.dumps(again) == json.dumps(found)
  assert other.ledgers == simulation.ledgers


def test_the_search_looks_at_rows_that_nobody_trains_on():
  _, search = elastic.STAGES['lonas'](bench('lonas'))
  assert search.view is not None
  data = world.federation()
  assert search.view(data).train is data.validation


@pytest.mark.parametrize(
  ('name', 'flags', 'said'),
  [
    ('lonas', {'lonas__ranks': '1,3'}, '--lonas.ranks='),
    ('lonas', {'lonas__ranks': 'two'}, 'no list of ranks'),
    ('lonas', {'server__aggregator': 'median'}, '--server.aggregator=median'),
    ('fedot', {'fedot__ends': 2}, 'allowed: 1 to 1'),
    ('fedot', {'lora__ranks': '1,2'}, '--lora.ranks=1,2'),
    ('fedot', {'model__name': 'a/clip', 'model__head': 'contrast'}, 'towers'),
    ('lonas', {'model__name': 'a/clip', 'model__head': 'contrast'}, 'batch'),
    (
      'fedpft',
      {'model__name': 'a/clip', 'model__head': 'contrast'},
      'one tower',
    ),
    ('raffm', {'raffm__mlp': '1,2'}, "--raffm.mlp='1,2'"),
    ('raffm', {'raffm__head': 'all'}, "--raffm.head='all'"),
    ('raffm', {'server__aggregator': 'median'}, '--server.aggregator=median'),
    (
      'raffm',
      {'model__name': 'a/b', 'model__storage': 'bfloat16'},
      '--model.storage=bfloat16',
    ),
    (
      'raffm',
      {'model__name': 'a/clip', 'model__head': 'contrast'},
      'one tower',
    ),
    ('fedpft', {'fedpft__ends': 2}, '--fedpft.ends=2'),
    ('fedpft', {'lora__targets': 'attn/q,mlp/up'}, 'has mlp/up'),
    ('fedpft', {'data__public_fraction': 0.0}, '--data.public_fraction=0'),
    ('fedpft', {'server__aggregator': 'median'}, '--server.aggregator=median'),
    (
      'fedpft',
      {'model__name': 'a/b', 'model__storage': 'bfloat16'},
      '--model.storage=bfloat16',
    ),
  ],
)
def test_what_does_not_fit_is_refused(name, flags, said):
  with pytest.raises(ValueError) as error:
    elastic.STAGES[name](bench(name, **flags))
  assert said in str(error.value)


def test_ranks_are_by_default_halves_of_the_largest():
  assert elastic._ranks('', 8) == (2, 4, 8)
  assert elastic._ranks('', 1) == (1,)
  assert elastic._ranks('3,1', 8) == (1, 3, 8)


@pytest.mark.parametrize(
  ('name', 'said'), [('fedpft', 'gated MLPs'), ('raffm', 'plain MLPs')]
)
def test_mlps_with_gates_are_refused(name, said):
  made = bench(name)

  def gated(key):
    base = world.backbone().init(key)
    mlp = base['blocks']['mlp']
    blocks = base['blocks'] | {'mlp': mlp | {'gate': mlp['up']}}
    return base | {'blocks': blocks}

  backbone = world.backbone()._replace(init=gated)
  made = made._replace(model=made.model._replace(backbone=backbone))
  with pytest.raises(ValueError, match=f'name={name} .*{said}'):
    elastic.STAGES[name](made)


def test_the_server_trains_before_anybody_else():
  """So many steps, on public rows, in rounds of at most 50."""
  first, then = elastic.STAGES['fedpft'](bench('fedpft', fedpft__steps=120))
  assert first.central and not then.central and first.rounds == 3
  assert first.local['total'] == 120 and first.local['batch_size'] == 32


def test_widths_are_an_even_draw_by_round_and_client():
  flags = {'raffm__mlp': '1,0.5,0.25', 'raffm__head': '1,0.5'}
  variant = elastic.STAGES['raffm'](bench('raffm', **flags))[
    0
  ].algorithm.variant
  drawn = [variant(r, k) for r in range(30) for k in range(20)]
  assert drawn == [variant(r, k) for r in range(30) for k in range(20)]
  counts = {width: drawn.count(width) for width in drawn}
  assert len(counts) == 6 and min(counts.values()) > 60
  other = bench('raffm', seed=1, **flags)
  other = elastic.STAGES['raffm'](other)[0].algorithm.variant
  assert [other(r, 0) for r in range(30)] != [variant(r, 0) for r in range(30)]
