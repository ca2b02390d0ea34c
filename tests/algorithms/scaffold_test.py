"""SCAFFOLD by hand: two clients, two rounds of plain SGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.algorithms import fedms, scaffold
from tests import world
from tests.algorithms import cohort

POPULATION, RATE = 5, 0.5  # N; of world.SGD
PLAN = world.TOP
ROWS = world.cohort_rows(clients=2)
WEIGHTS = (ROWS >= 0).sum((1, 2)).astype(np.float32)
STEPS = (ROWS >= 0).any(2).sum(1)


@functools.cache
def method():
  return scaffold.scaffold(world.setting(), POPULATION)


@functools.cache
def plain():
  return fedms.global_stage(world.setting())


@functools.cache
def first():
  """(before, what came of it) of the first round."""
  before = cohort.begin(method())
  zeros = jax.tree.map(jnp.zeros_like, before.personal)
  before = before._replace(personal=zeros)
  return before, cohort.one_round(method(), before, ROWS, PLAN)


def controls(roles):
  return roles.frozen['server']


def own(personal, client):
  return jax.tree.map(lambda x: x[client], personal)


def combine(function, *trees):
  return jax.tree.map(function, *trees)


def sgd(roles, rows):
  """What FedAvg's only client makes of a model."""
  before = roles._replace(personal={})
  return cohort.one_round(plain(), before, rows, PLAN)[0].shared


def test_without_controls_it_is_sgd():
  before, (roles, *_) = first()
  start = before._replace(personal={})
  expected = cohort.one_round(plain(), start, ROWS, PLAN)[0]
  world.close(roles.shared, expected.shared)


def test_a_control_is_option_two_of_the_paper():
  """c_k - c + (x - y_k) / (steps * rate), both controls zero before."""
  before, (roles, personal, *_) = first()
  assert list(STEPS) == [2, 1]
  found = []
  for k in range(2):
    y = sgd(before, ROWS[k : k + 1])
    rule = combine(
      lambda x, y, k=k: (x - y) / (STEPS[k] * RATE), before.shared, y
    )
    world.close(own(personal, k), rule)
    found.append(rule)
  share = 2 / POPULATION * WEIGHTS / WEIGHTS.sum()
  mean = combine(lambda a, b: share[0] * a + share[1] * b, *found)
  world.close(controls(roles), mean)
  assert max(np.abs(x).max() for x in jax.tree.leaves(mean)) > 1e-3


def test_the_second_round_follows_the_corrected_gradient():
  """Client 1 has one step: y = x - rate (g + c - c_1)."""
  _, (roles, personal, *_, memory) = first()
  mine = jax.tree.map(lambda x: x[1:], personal)
  after, new, *_ = cohort.one_round(
    method(), roles, ROWS[1:], PLAN, personal=mine, memory=memory
  )
  plain_step = sgd(roles, ROWS[1:])
  c, c1 = controls(roles), own(personal, 1)
  expected = combine(lambda y, c, k: y - RATE * (c - k), plain_step, c, c1)
  world.close(after.shared, expected)
  moved = combine(lambda a, b: np.abs(a - b).max(), plain_step, expected)
  assert max(jax.tree.leaves(moved)) > 1e-3
  # Option two with controls that are not zero.
  rule = combine(
    lambda k, c, x, y: k - c + (x - y) / RATE,
    c1, c, roles.shared, after.shared,
  )  # fmt: skip
  world.close(own(new, 0), rule)
  # c moves by 1 / N of the change.
  c_rule = combine(
    lambda c, new, old: c + (new - old) / POPULATION, c, rule, c1
  )
  world.close(controls(after), c_rule)


def test_what_did_not_train_keeps_its_controls():
  _, (roles, personal, *_) = first()
  for leaf in jax.tree.leaves(controls(roles)['blocks']):
    assert not np.asarray(leaf)[:2].any()
  for leaf in jax.tree.leaves(personal['blocks']):
    assert not np.asarray(leaf)[:, :2].any()
    assert np.asarray(leaf)[:, 2].any()


def test_clients_at_once_and_one_by_one_agree():
  _, (roles, personal, *_, memory) = first()
  wide, slow = (
    cohort.one_round(
      method(), roles, ROWS, PLAN, personal=personal, memory=memory, how=how
    )
    for how in ('vmap', 'loop')
  )
  world.close(wide[:2], slow[:2])


def test_a_server_optimizer_moves_the_model_alone():
  """Doubled steps of the model, the same controls."""
  before, (roles, *_) = first()
  setting = world.setting(outer=world.optax.sgd(2.0))
  double = scaffold.scaffold(setting, POPULATION)
  other, *_ = cohort.one_round(double, before, ROWS, PLAN)
  world.close(controls(other), controls(roles))
  twice = combine(lambda x, y: 2 * y - x, before.shared, roles.shared)
  world.close(other.shared, twice)
