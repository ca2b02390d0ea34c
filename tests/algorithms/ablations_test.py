"""FedMS without one of its parts: what is left, and what is still sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import fedms
from fedms_jax.core import columns
from fedms_jax.models import gate
from fedms_jax.schedules import triggers
from fedms_jax.server import optimizers
from fedms_jax.systems.ledger import Meter
from tests import world

FIXED = fedms.Personal(world.spec(kind='fixed'))
OWN_GATE = fedms.Personal(world.spec(), scope='local')
HARD = fedms.Personal(world.spec(mix='top1'))


def predict(algorithm, roles, rows=range(16)):
  """Of a local expert that is not the global one."""
  moved = jax.tree.map(lambda x: x * 1.2 + 0.02, roles.personal)
  batch = columns.take(world.table(), jnp.asarray(rows))
  roles = roles._replace(personal=moved)
  return jax.jit(
    lambda r: algorithm.predict(
      r, columns.complete(algorithm, r, batch, world.DENSE), world.DENSE
    )
  )(roles)


def sent(algorithm, roles):
  meter = Meter(algorithm, roles, batch=4, slots=0)
  return meter.traffic(world.DENSE, world.DENSE.active, 3)


def test_without_a_gate_both_experts_weigh_one_half():
  algorithm, roles = world.second_stage(FIXED)
  found = predict(algorithm, roles)
  assert (found.stats['gate_weight'] == 0.5).all()
  mean = (found.logits['global'] + found.logits['local']) / 2
  world.close(found.logits['mixture'], mean, atol=1e-6)
  assert roles.shared == {} and set(roles.personal) == {'blocks', 'head'}
  assert sent(algorithm, roles) == (0, 0)
  assert algorithm.passes.frozen == 1  # the base has no features to give


def test_a_fixed_gate_may_have_a_bias():
  spec = world.spec(kind='fixed', bias=2.0)
  w = gate.weights(spec, gate.init(jax.random.key(0), spec), jnp.ones((2, 8)))
  np.testing.assert_allclose(w[:, gate.GLOBAL], 0.8807971, rtol=1e-6)
  np.testing.assert_allclose(w.sum(axis=-2), 1.0)


def test_a_local_gate_learns_as_the_shared_one_but_is_not_sent():
  """Of one client: the average of one gate is the gate."""
  algorithm, roles = world.second_stage(OWN_GATE)
  assert roles.shared == {} and sent(algorithm, roles) == (0, 0)
  shared, start = world.second_stage()
  world.same(roles.personal['gate'], start.shared['gate'])
  rows = world.cohort_rows(clients=1)
  nothing, own, _ = world.train(algorithm, roles, rows)
  averaged, other, _ = world.train(shared, start, rows)
  assert nothing == {}
  own = jax.tree.map(lambda x: x[0], own)
  world.close(own['gate'], averaged['gate'])
  world.close(own['blocks'], jax.tree.map(lambda x: x[0], other['blocks']))
  kernel = own['gate']['linear']['kernel']
  assert np.abs(kernel).max() > 1e-4  # it started at zero


def test_local_gates_differ_between_clients():
  algorithm, roles = world.second_stage(OWN_GATE)
  _, own, _ = world.train(algorithm, roles, world.cohort_rows())
  kernel = own['gate']['linear']['kernel']
  assert np.abs(kernel[0] - kernel[2]).max() > 1e-5


def test_a_gate_has_its_learning_rate_in_either_role():
  gates = {'gate': jnp.ones(2), 'gate_blocks': jnp.ones(2)}
  labels = optimizers._labels(
    {'shared': gates | {'head': jnp.ones(1)}, 'personal': gates}
  )
  assert labels['personal'] == {'gate': 'gate', 'gate_blocks': 'gate'}
  assert labels['shared'] == labels['personal'] | {'head': 'shared'}


def test_a_hard_gate_gives_the_logits_of_the_chosen_expert():
  algorithm, roles = world.second_stage(HARD)
  linear = roles.shared['gate']['linear']
  kernel = 5 * jax.random.normal(jax.random.key(4), linear['kernel'].shape)
  linear = linear | {'kernel': kernel}
  gates = {'gate': roles.shared['gate'] | {'linear': linear}}
  found = predict(algorithm, roles._replace(shared=gates), range(world.ROWS))
  chosen = np.asarray(found.stats['gate_weight']) > 0.5
  assert 0 < chosen.sum() < world.ROWS
  expected = np.where(
    chosen[:, None], found.logits['global'], found.logits['local']
  )
  np.testing.assert_array_equal(found.logits['mixture'], expected)


def test_without_stage_one_the_global_expert_is_the_pretrained_model():
  first, second = world.stages(1, triggers.dense(world.BLOCKS))
  _, state, records = world.simulate([first._replace(rounds=0), second])
  frozen = state.roles.frozen
  world.same(frozen['global'], frozen['start'])
  assert [record['stage'] for record in records] == ['personal']


@pytest.mark.parametrize('choice', [FIXED, OWN_GATE], ids=['fixed', 'own'])
def test_wide_vmap_equals_the_loop(choice):
  algorithm, roles = world.second_stage(choice)
  rows = world.cohort_rows()
  wide = world.train(algorithm, roles, rows, world.TOP)
  loop = world.train(algorithm, roles, rows, world.TOP, how='loop')
  world.close(wide, loop)
