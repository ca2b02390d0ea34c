"""FedFN: the head sees directions alone, and learns faster."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import fedfn
from fedms_jax.core import columns, tree
from tests import world

LENGTH, FACTOR = 3.0, 4.0


@functools.cache
def method(factor=FACTOR, length=LENGTH):
  algorithm = fedfn.fedfn(world.setting(), length, factor)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  return algorithm, world.trained(roles)


def predicted(roles):
  algorithm, _ = method()
  batch = columns.take(world.table(), jnp.arange(8))

  @jax.jit
  def logits(roles):
    found = columns.complete(algorithm, roles, batch, world.DENSE)
    return algorithm.predict(roles, found, world.DENSE).logits

  return logits(roles)


def longer(roles, factor):
  """The roles of a base whose features are `factor` times as long."""
  base = roles.frozen['base']
  final = jax.tree.map(lambda x: factor * x, base['final'])
  return roles._replace(frozen=roles.frozen | {'base': base | {'final': final}})


def test_only_the_direction_of_a_feature_counts():
  _, roles = method()
  before, after = predicted(roles), predicted(longer(roles, 5.0))
  np.testing.assert_allclose(after['global'], before['global'], atol=1e-4)
  # The model as it was has no such head.
  gap = np.abs(after['pretrained'] - before['pretrained'])
  assert gap.max() > 0.1


@pytest.mark.parametrize('length', [1.0, LENGTH])
def test_features_get_the_length_that_is_asked_for(length):
  x = jax.random.normal(jax.random.key(0), (3, 5))
  found = fedfn.normalized(x, length)
  np.testing.assert_allclose(np.linalg.norm(found, axis=-1), length, rtol=1e-5)
  slope = jax.grad(lambda x: fedfn.normalized(x, length).sum())(0 * x)
  assert np.isfinite(slope).all()  # a feature of no length has one, too


def test_the_head_alone_moves_faster():
  rows = world.cohort_rows(clients=1, steps=1)
  moved = []
  for factor in (1.0, FACTOR):
    algorithm, roles = method(factor)
    shared, *_ = world.train(algorithm, roles, rows)
    moved.append(jax.tree.map(lambda x, y: x - y, shared, roles.shared))
  world.close(
    moved[1]['head'], jax.tree.map(lambda x: FACTOR * x, moved[0]['head'])
  )
  world.close(moved[1]['blocks'], moved[0]['blocks'])
  assert np.abs(moved[0]['head']['kernel']).max() > 1e-3


def test_training_sees_directions_alone_too():
  """A step is the same however long features are."""
  algorithm, roles = method()
  rows = world.cohort_rows(clients=1, steps=1)
  shared, *_ = world.train(algorithm, roles, rows)
  other, *_ = world.train(algorithm, longer(roles, 5.0), rows)
  world.close(other, shared, atol=1e-4)
  assert not bool(tree.equal(shared, roles.shared))
