"""A round of all clients that makes the head that a method starts from."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import adapted
from fedms_jax.core import tree
from fedms_jax.models.family import Model
from fedms_jax.shell import build, config, methods
from fedms_jax.shell.methods import head_start
from fedms_jax.simulation.state import Preempted
from tests import world
from tests.shell.methods.interned_test import PLAIN
from tests.shell.methods.methods_test import USUAL, Stop, bench, simulate

ON = {'algorithm.head_start': 'fgl', 'fgl.per_class': 32, 'fgl.epochs': 1}


def stages(name, **more):
  flat = {k.replace('__', '.'): v for k, v in more.items()}
  found = config.from_values(USUAL | ON | {'algorithm.name': name} | flat)
  config.validate(found)
  model = Model(world.backbone(), {})
  return methods.stages(found, model, world.CLASSES), found


def leaves(node):
  return [np.asarray(x) for x in jax.tree.leaves(node)]


@pytest.mark.parametrize(
  'name', [name for name in PLAIN if name not in head_start._REFUSED]
)
def test_every_method_starts_from_the_head_that_was_made(name):
  (before, first, *_), found = stages(name)
  assert (before.name, before.rounds) == ('head', 1)
  assert before.local['cohort'] == found.partition.num_clients
  backbone = first.algorithm.backbone
  head = jax.tree.map(
    lambda x: x + jnp.float32(0.625), backbone.init_head(jax.random.key(1))
  )
  base = world.backbone().init(jax.random.key(0))
  start = adapted.start(base, jax.tree.map(jnp.zeros_like, head))
  made = before.algorithm.begin(jax.random.key(2), start)
  made = made._replace(shared={'head': head})
  roles = first.algorithm.begin(jax.random.key(3), made)
  plain, _ = stages(name, algorithm__head_start='')
  assert len(plain) == len(stages(name)[0]) - 1
  bare = plain[0].algorithm.begin(jax.random.key(3), adapted.start(base, head))
  world.same(roles, bare)
  kernel = np.asarray(head['kernel'])
  held = leaves(roles)
  assert any(x.shape == kernel.shape and (x == kernel).all() for x in held)


def test_the_round_looks_at_every_row_once_and_a_run_resumes(tmp_path):
  made, found = stages('fedit')
  options = build.options(found)
  whole = simulate(made, options, tmp_path / 'whole')
  result, simulation, state, records = whole
  assert [record['stage'] for record in records] == ['head', 'global', 'global']
  train = simulation.federation.train
  assert records[0]['examples'] == len(train.rows)
  assert records[0]['clients'] == train.num_clients
  assert records[0]['bytes_down'] == 0 < records[0]['bytes_up']
  started = state.roles.frozen['start']['head']
  given = whole[1].initial.frozen['head']
  assert float(tree.squared_norm(tree.subtract(started, given))) > 0

  with pytest.raises(Preempted):
    simulate(made, options, tmp_path / 'pieces', Stop())
  again, _, resumed, _ = simulate(made, options, tmp_path / 'pieces')
  world.same(resumed.roles, state.roles)
  assert json.dumps(again) == json.dumps(result)


@pytest.mark.parametrize(
  ('name', 'flags'),
  [
    ('hetlora', {'lora__ranks': '1,2'}),
    ('fdapt', {'client__state': 'kept'}),
    ('fedit', {'server__optimizer': 'adam'}),
  ],
)
def test_what_a_method_may_have_it_may_have_after_the_round(name, flags):
  (before, *rest), _ = stages(name, **flags)
  assert before.name == 'head' and rest


def test_methods_that_differ_in_their_start_share_no_algorithm():
  found = [
    stages('fedit')[0],
    stages('fedit', fgl__epochs=2)[0],
    stages('fedit', algorithm__head_start='')[0],
  ]
  assert len({id(made[-1].algorithm) for made in found}) == 3
  assert stages('fedit')[0][0].algorithm is found[0][0].algorithm


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ({'algorithm__name': 'ridge'}, '--algorithm.name=ridge'),
    ({'algorithm__name': 'fgl'}, '--algorithm.name=fgl'),
    ({'algorithm__name': 'ncm'}, '--algorithm.name=ncm'),
    ({'tasks__count': 2}, '--tasks.count=2'),
    ({'privacy__mode': 'central', 'privacy__noise': 1.0}, '--privacy.mode='),
    ({'secagg__mode': 'masked'}, '--secagg.mode=masked'),
    (
      {'attack__update': 'sign_flip', 'attack__fraction': 0.2},
      '--attack.update=',
    ),
    ({'time__policy': 'synchronous'}, '--time.policy=sync'),
    ({'select__name': 'power_of_choice'}, '--select.name=power_of_choice'),
    (
      {'client__schedule': 'cosine', 'client__steps': 3},
      '--client.schedule=cosine',
    ),
    ({'stages': 'S2,fedit'}, '--stages=S2,fedit'),
    ({'lora__init': 'x'}, '--lora.init=x'),
    ({'compression__up': 'top_k'}, '--compression.up=top_k'),
    ({'compression__down': 'uniform'}, '--compression.down=uniform'),
    ({'server__aggregator': 'median'}, '--server.aggregator=median'),
  ],
)
def test_what_does_not_go_with_it_is_refused_by_name(flags, said):
  with pytest.raises(ValueError) as error:
    stages('fedit', **flags)
  text = str(error.value)
  assert said in text and '--algorithm.head_start=fgl' in text


@pytest.mark.parametrize('name', ['fgl', 'fedms'])
@pytest.mark.parametrize(
  'head', ['regression', 'ordinal', 'multi_label', 'masked_lm']
)
def test_what_has_no_classes_by_row_has_no_statistics_of_them(name, head):
  flags = {} if name == 'fgl' else {'algorithm__head_start': 'fgl'}
  made = bench(name, **flags)
  model = dataclasses.replace(made.config.model, head=head)
  other = dataclasses.replace(made.config, model=model)
  with pytest.raises(ValueError, match=f'--model.head={head}'):
    head_start.choice(made._replace(config=other))
