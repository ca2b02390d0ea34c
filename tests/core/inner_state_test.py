"""What becomes of a client's optimizer: reset, kept, averaged, the server's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax import schedules
from fedms_jax.algorithms import full
from fedms_jax.core import inner_state
from fedms_jax.schedules import triggers
from fedms_jax.server import optimizers
from fedms_jax.simulation.state import Stage
from tests import world

MADE = {
  'reset': lambda algorithm: algorithm,
  'kept': inner_state.kept,
  'averaged': inner_state.averaged,
  'central': inner_state.central,
}
ADAMW = optax.adamw(0.01, weight_decay=0.1, eps=1e-4)


@functools.cache
def method(state, optimizer=ADAMW, outer=world.PLAIN):
  return MADE[state](full.full_model(world.setting(optimizer, outer)))


def dense(handover):
  del handover
  return schedules.schedule(triggers.dense(world.BLOCKS), range(world.BLOCKS))


def stage(state, rounds, name='', **fields):
  return Stage(name or state, method(state), rounds, dense, **fields)


def one_client():
  """A federation of a single client."""
  return world.federation(1)


def run(stages, **options):
  options = {'cohort': 1, 'steps': 2, 'seed': 0} | options
  _, state, records = world.simulate(stages, data=one_client(), **options)
  return state, records


@functools.cache
def ran(state, rounds, steps):
  return run([stage(state, rounds)], steps=steps, batch_size=6)[0]


@pytest.mark.parametrize('state', ['kept', 'averaged', 'central'])
def test_a_state_that_goes_on_makes_of_rounds_one_run(state):
  """Each round is one step on all of the client's rows, so that the batches
  are the same."""
  world.close(
    ran(state, 4, 1).roles.shared, ran('reset', 1, 4).roles.shared, atol=1e-5
  )


def test_a_state_that_is_reset_makes_of_rounds_another_run():
  one, many = ran('reset', 1, 4), ran('reset', 4, 1)
  moved = jax.tree.map(
    lambda x, y: float(jnp.abs(x - y).max()),
    one.roles.shared,
    many.roles.shared,
  )
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_after_a_reset_adam_s_first_step_is_as_long_as_the_rate():
  """Whatever the gradient is: the jump at the start of each round."""
  optimizer = optimizers.client('adam', shared=0.25, personal=1.0, gate=1.0)
  params = {'shared': {'w': jnp.zeros(3)}, 'personal': {}}
  gradient = {'shared': {'w': jnp.array([1e-3, 1.0, -50.0])}, 'personal': {}}
  steps, _ = optimizer.update(gradient, optimizer.init(params), params)
  np.testing.assert_allclose(
    steps['shared']['w'], [-0.25, -0.25, 0.25], rtol=1e-4
  )


def test_the_mean_of_states_is_weighted_and_of_counts_whole():
  algorithm = method('averaged')
  roles = jax.jit(algorithm.begin)(jax.random.key(0), world.start())
  memory = algorithm.server.init(jax.random.key(0), roles)
  state = memory['inner']

  def message(value):
    extras = {'inner': {'state': jax.tree.map(lambda x: x + value, state)}}
    cover = {key: jnp.float32(1) for key in roles.shared}
    cover['blocks'] = jnp.ones(world.BLOCKS)
    return inner_state.Message(roles.shared, extras, cover)

  sent = [
    algorithm.server.send(roles.shared, message(v), jnp.float32(w), None)
    for v, w in ((2, 3.0), (6, 1.0))
  ]
  extras = jax.tree.map(lambda x, y: x + y, *(m.extras for m in sent))
  received = inner_state.Received(
    jax.tree.map(lambda x, y: x + y, *(m.update for m in sent)),
    extras,
    jax.tree.map(lambda x, y: x + y, *(m.cover for m in sent)),
    2,
    0,
  )
  _, after, _ = algorithm.server.step(roles, memory, received, None)
  moved = jax.tree.map(lambda x, y: y - x, state, after['inner'])
  for x in jax.tree.leaves(moved):
    np.testing.assert_allclose(x, 3, atol=1e-5)
  kinds = jax.tree.map(lambda x, y: x.dtype == y.dtype, state, after['inner'])
  assert all(jax.tree.leaves(kinds))


def test_phases_of_a_series_go_on_where_the_last_one_ended():
  """Six steps of the server in two phases are as good as in one, but for the
  clock of what lies between."""
  phases = [
    stage('central', 2, 'first', central=True, series='server'),
    stage('reset', 0, 'between'),
    stage('central', 2, 'second', central=True, series='server'),
  ]
  local = {'steps': 1, 'batch_size': 16}
  phases = [one._replace(local=local) for one in phases]
  state, _ = run(phases)
  whole, _ = run([phases[0]._replace(rounds=4)])
  assert state.clock == whole.clock == 4
  world.close(state.roles.shared, whole.roles.shared, atol=1e-5)
  world.close(state.memory, whole.memory, atol=1e-5)
  alone, _ = run([phases[0], phases[2]._replace(series='another')])
  assert alone.clock == 2


def test_a_server_s_phase_sends_nothing_and_sees_public_rows():
  state, records = run([stage('central', 1, central=True, local={'steps': 3})])
  assert state.ledger.bytes_up == state.ledger.bytes_down == 0
  assert records[0]['train_loss'] > 0
  data = one_client()
  elsewhere = data._replace(public=data.public[:4])
  _, other, _ = world.simulate(
    [stage('central', 1, central=True, local={'steps': 3})],
    data=elsewhere, cohort=1,
  )  # fmt: skip
  moved = jax.tree.map(
    lambda x, y: float(jnp.abs(x - y).max()),
    state.roles.shared, other.roles.shared,
  )  # fmt: skip
  assert max(jax.tree.leaves(moved)) > 1e-4


def test_the_last_round_takes_the_steps_that_are_left():
  local = {'steps': 3, 'total': 7}
  state, _ = run([stage('central', 3, central=True, local=local)])
  assert state.clock == 7


def test_equal_weights_are_those_of_one_row_each():
  data = world.federation(2)
  train = data.train
  few = train._replace(offsets=np.array([0, 6, 8]), rows=train.rows[:8])
  data = data._replace(train=few)
  plain = [stage('reset', 1)]

  def shared(**options):
    return world.simulate(
      plain, data=data, cohort=2, steps=1, batch_size=6, **options
    )[1].roles.shared

  rows, equal = shared(), shared(weights='equal')
  moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), rows, equal)
  assert max(jax.tree.leaves(moved)) > 1e-4
  alone = [
    world.simulate(
      plain, cohort=1, steps=1, batch_size=6, data=data._replace(
        train=few._replace(offsets=few.offsets[i : i + 2])
      ),
    )[1].roles.shared
    for i in range(2)
  ]  # fmt: skip
  mean = jax.tree.map(lambda x, y: (x + y) / 2, *alone)
  world.close(equal, mean, atol=2e-4)


def test_a_course_rises_and_falls_over_the_clock():
  course = optimizers.Course(horizon=110, warmup=10, floor=0.1)
  share = [float(course.share(c)) for c in (0, 4, 9, 10, 60, 110, 500)]
  np.testing.assert_allclose(
    share, [0.1, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1], atol=1e-6
  )


def test_a_rate_follows_the_clock_of_the_run_and_not_of_the_client():
  course = optimizers.Course(horizon=4, warmup=1, floor=0.0)
  optimizer = optimizers.client(
    'sgd', shared=1.0, personal=1.0, gate=1.0, course=course
  )
  algorithm = full.full_model(world.setting(optimizer))
  plain = [Stage('whole', algorithm, 2, dense)]
  both, _ = run(plain, steps=2)
  late, _ = run([plain[0]._replace(rounds=1)], steps=2)
  assert both.clock == 4
  # From step 3 of 4 on the rate is a quarter and less: the second round moves
  # less than the first, which it would not by a clock of its own.
  roles = jax.jit(algorithm.begin)(jax.random.key(0), world.start())

  def length(x, y):
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, x, y)))

  first = length(late.roles.shared, roles.shared)
  second = length(both.roles.shared, late.roles.shared)
  assert second < 0.6 * first


def test_averaged_states_cost_traffic():
  plain, _ = run([stage('reset', 1)])
  found, _ = run([stage('averaged', 1)])
  # Two moments beside the weights, and a few counts.
  assert found.ledger.bytes_up == pytest.approx(
    3 * plain.ledger.bytes_up, rel=0.01
  )
