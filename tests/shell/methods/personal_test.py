"""Personal methods from flags: each trains, is evaluated, and adds up."""

import functools

import jax
import numpy as np
import pytest

from fedms_jax.core import reduction
from fedms_jax.models.family import Model
from fedms_jax.server import measures
from fedms_jax.shell import config, methods
from fedms_jax.shell.methods import personal
from fedms_jax.simulation import evaluation
from tests import world


@functools.cache
def stages(name, **values):
  flat = {
    'algorithm.name': name,
    'algorithm.stage1_rounds': 1,
    'algorithm.stage2_rounds': 1,
    'lora.targets': ','.join(world.TARGETS),
    'lora.rank': 2,
    'lora.alpha': 4.0,
    'schedule.name': 'manual',
    'schedule.depths': '2',
    'client.optimizer': 'sgd',
    'gate.learning_rate': 0.0,
    **{key.replace('__', '.'): value for key, value in values.items()},
  }
  model = Model(world.backbone(), {})
  return methods.stages(config.from_values(flat), model, world.CLASSES)


@pytest.mark.slow  # `tests/family_test.py` holds every method to it
@pytest.mark.parametrize('name', personal.STAGES)
def test_a_method_runs_the_same_in_the_loop_and_in_wide_vmap(name):
  """With its columns looked up and computed in the step, too."""
  (stage,) = stages(name)
  assert stage.rounds == 2
  simulation, state, records = world.simulate(
    [stage], clients='loop', scope='run'
  )
  wide, other, _ = world.simulate([stage], clients='vmap', scope='step')
  world.close(state.roles.shared, other.roles.shared)
  world.close(own(simulation, state), own(wide, other))
  assert np.isfinite([record['train_loss'] for record in records]).all()
  missed = [record.get(measures.RESIDUAL, 0.0) for record in records]
  averages = name not in ('local', 'pfedlora')
  assert (min(missed) > 0) == averages  # LoRA is averaged
  found = evaluation.evaluate(simulation, state, evaluation.Scope())
  models = {'pretrained', 'local', stage.algorithm.served}
  assert models <= set(found['models'])
  up = simulation.ledgers[stage.name].bytes_up
  assert (up == 0) == (name == 'local')


@pytest.mark.parametrize(
  ('flags', 'logged'),
  [
    ({}, False),
    ({'algorithm__upload_blocks': 1.0}, True),
    ({'gate__tower': 'lora'}, True),
    ({'gate__tower': 'lora', 'gate__scope': 'local'}, False),
  ],
)
def test_stage_2_logs_it_where_it_averages_lora(flags, logged):
  first, second = stages('fedms', **flags)
  roles = world.start()
  for stage in (first, second):
    roles = jax.eval_shape(stage.algorithm.begin, jax.random.key(0), roles)
  sent, _ = reduction.message_shapes(second.algorithm, roles)
  assert ('sketch' in sent.extras) == logged
  if 'algorithm__upload_blocks' in flags:
    *_, records = world.simulate([first, second])
    assert records[-1][measures.RESIDUAL] > 0


def own(simulation, state):
  """The personal states of all clients."""
  store = simulation.run_store.store('personal', state.roles.personal)
  return store.gather(np.arange(6))


@pytest.mark.parametrize('name', personal.STAGES)
def test_its_probe_sees_a_slope_in_every_block(name):
  """Else the order by importance would be an accident."""
  (stage,) = stages(name)
  roles = jax.jit(stage.algorithm.begin)(jax.random.key(2), world.start())
  rows = world.cohort_rows(clients=1, steps=1)
  shared, own, _ = world.train(stage.probe, roles, rows)
  before = (roles.shared, world.stacked(roles.personal, 1))
  moved = np.zeros(world.BLOCKS)
  for role, start in zip((shared, own), before, strict=True):
    if 'blocks' in role:
      for x, y in zip(
        jax.tree.leaves(role['blocks']), jax.tree.leaves(start['blocks']),
        strict=True,
      ):  # fmt: skip
        shape = (-1, world.BLOCKS, *x.shape[-2:])
        moved += np.square(np.reshape(x - y, shape)).sum((0, 2, 3))
  assert (moved > 0).all() and np.isfinite(moved).all()


@pytest.mark.parametrize('name', ['fedper', 'fedrep'])
def test_a_model_without_a_head_is_refused(name):
  bare = world.backbone()._replace(init_head=lambda key: {})
  model = Model(bare, {})
  flat = {'algorithm.name': name, 'model.head': 'zero_shot'}
  with pytest.raises(ValueError, match=f'name={name} keeps the head .*zero_sh'):
    methods.stages(config.from_values(flat), model, world.CLASSES)


@pytest.mark.parametrize('flag', ['gate.scope', 'gate.tower'])
def test_a_fixed_gate_takes_no_flag_of_a_gate(flag):
  value = {'gate.scope': 'local', 'gate.tower': 'lora'}[flag]
  with pytest.raises(ValueError, match=f'--gate.kind=fixed .*--{flag}={value}'):
    stages('fedms', gate__kind='fixed', **{flag.replace('.', '__'): value})
