"""Methods of the family `transfer`, from flags to figures."""

import json
import math

import pytest

from fedms_jax.shell import build
from fedms_jax.shell.methods import analytic, transfer
from fedms_jax.simulation.state import Preempted
from tests import world
from tests.shell.methods.methods_test import Stop, bench, simulate

ALL = {'pretrained', 'global', 'local'}
MODELS = {
  'feddat': ALL,
  'fedcaf': ALL,
  'fedkei': ALL,
  'fedweit': ALL - {'local'} | {'by_task'},
  'fgl': ALL - {'local'},
  'femam': ALL,
  'koala': {'pretrained', 'global', 'small_2'},
}


@pytest.mark.slow
@pytest.mark.parametrize('name', transfer.STAGES)
def test_two_rounds_an_evaluation_and_a_resumed_run(name, tmp_path):
  made = bench(name)
  stages, options = transfer.STAGES[name](made), build.options(made.config)
  whole = simulate(stages, options, tmp_path / 'whole')
  found, simulation, state, records = whole
  assert len(records) == 2
  assert all(math.isfinite(record['train_loss']) for record in records)
  assert set(found['models']) == MODELS[name]
  entry = simulation.ledgers[stages[-1].name]
  assert entry.bytes_up > 0 and entry.client_flops > 0

  with pytest.raises(Preempted):
    simulate(stages, options, tmp_path / 'pieces', Stop())
  again, other, resumed, _ = simulate(stages, options, tmp_path / 'pieces')
  world.same(resumed.roles, state.roles)
  world.same(resumed.memory, state.memory)
  assert json.dumps(again) == json.dumps(found)
  assert other.ledgers == simulation.ledgers


@pytest.mark.parametrize(
  ('name', 'flags', 'said'),
  [
    (
      'feddat',
      {'model__head': 'contrast', 'model__name': 'a/b'},
      '--model.head=contrast',
    ),
    ('feddat', {'lora__ranks': '1,2'}, '--lora.ranks=1,2'),
    ('fgl', {'server__aggregator': 'median'}, '--server.aggregator=median'),
    ('fedcaf', {'server__aggregator': 'median'}, '--server.aggregator=median'),
    ('femam', {'femam__clusters': 65}, '--femam.clusters=65'),
    ('femam', {'server__optimizer': 'adam'}, '--server.optimizer=adam'),
    ('koala', {'koala__depths': '4'}, '--koala.depths='),
    ('koala', {'koala__depths': ''}, '--koala.depths is empty'),
    ('koala', {'data__public_fraction': 0.0}, '--data.public_fraction=0'),
    ('fedkei', {'fedkei__clusters': 17}, '--fedkei.clusters=17'),
    ('feddat', {'feddat__targets': 'mlp/x'}, "'mlp/x' matches no layer"),
  ],
)
def test_what_does_not_fit_is_refused(name, flags, said):
  with pytest.raises(ValueError) as error:
    transfer.STAGES[name](bench(name, **flags))
  assert said in str(error.value)


@pytest.mark.parametrize('name', ['ncm', 'ridge'])
@pytest.mark.parametrize(
  'flag', ['server.aggregator=median', 'server.optimizer=adam']
)
def test_a_head_that_is_computed_has_no_other_server(name, flag):
  option, value = flag.split('=')
  made = bench(name, **{option: value})
  with pytest.raises(ValueError, match=f'--{flag}'):
    analytic.STAGES[name](made)


@pytest.mark.parametrize('name', ['fgl', 'femam'])
def test_a_model_without_a_head_is_refused(name):
  made = bench(name, model__head='zero_shot', model__name='a/b')
  bare = world.backbone()._replace(init_head=lambda key: {})
  made = made._replace(model=made.model._replace(backbone=bare))
  with pytest.raises(ValueError, match=f'name={name} .*head=zero_shot has n'):
    transfer.STAGES[name](made)
