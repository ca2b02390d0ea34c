"""FGL: statistics are those of all rows, and draws are like the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import fgl
from fedms_jax.core import columns
from fedms_jax.models import pretrained
from tests import world
from tests.algorithms import cohort

CHOICE = fgl.Choice(512, 2, 0.05, world.CLASSES)


@functools.cache
def method():
  algorithm = fgl.synthesized(world.setting(), CHOICE)
  return algorithm, jax.jit(algorithm.begin)(jax.random.key(2), world.start())


@functools.cache
def after():
  algorithm, roles = method()
  return cohort.one_round(algorithm, roles, world.cohort_rows(), world.DENSE)


def rows():
  """(features, labels) of all rows of the cohort, by numpy."""
  some = world.cohort_rows()
  some = some[some >= 0]
  data = world.columns()
  base = method()[1].frozen['base']
  x = pretrained.encode(world.backbone(), base, data['inputs'][some])
  return np.asarray(x, np.float64), data['labels'][some]


def test_the_server_knows_the_means_and_the_covariance():
  x, labels = rows()
  found = fgl.gaussians(after().memory)
  centered = np.array(x)
  for c in range(world.CLASSES):
    mine = labels == c
    assert bool(found.held[c]) == mine.any()
    if mine.any():
      np.testing.assert_allclose(found.means[c], x[mine].mean(0), atol=1e-4)
      centered[mine] -= x[mine].mean(0)
  np.testing.assert_allclose(
    found.root @ found.root.T, centered.T @ centered / len(x), atol=1e-3
  )


def test_rounds_add_up():
  algorithm, roles = method()
  memory = after().memory
  again = cohort.one_round(
    algorithm, roles, world.cohort_rows(), world.DENSE, memory=memory
  )
  world.close(again.memory, jax.tree.map(lambda x: 2 * x, memory), atol=1e-3)


def test_draws_are_of_classes_that_somebody_has():
  held = jnp.array([True, False, True])
  means = jnp.array([[0.0, 0], [50, 50], [9, -9]])
  root = jnp.array([[2.0, 1], [1, 1]])
  x, labels = fgl.drawn(
    fgl.Gaussians(held, means, root), jax.random.key(0), 20000
  )
  counts = np.bincount(labels, minlength=3)
  assert counts[1] == 0 and abs(counts[0] - counts[2]) < 600
  for c in (0, 2):
    mine = np.asarray(x)[np.asarray(labels) == c]
    np.testing.assert_allclose(mine.mean(0), means[c], atol=0.1)
    np.testing.assert_allclose(np.cov(mine.T), root @ root.T, atol=0.25)


def test_noise_does_not_make_a_covariance_that_is_none():
  statistics = {
    'counts': jnp.array([4.0]),
    'sums': jnp.zeros((1, 2)),
    'squares': jnp.array([[4.0, 0], [0, -1]]),
  }
  root = fgl.gaussians(statistics).root
  np.testing.assert_allclose(root, [[1, 0], [0, 0]], atol=1e-6)


def loss_and_score(head, found, count=4000):
  """Of a head on features drawn anew."""
  x, labels = fgl.drawn(found, jax.random.key(9), count)
  base = method()[1].frozen['base']
  out = world.backbone().logits(base, head, x)
  batch = {'labels': labels, 'mask': jnp.ones(count, bool)}
  right = np.mean(np.argmax(out, -1) == np.asarray(labels))
  return float(world.TASK.loss(out, batch)[0].mean()), float(right)


@pytest.mark.slow
def test_one_round_makes_a_head_that_fits_what_is_drawn_better():
  """From the head that the run begins with, by the classes' Gaussians."""
  _, roles = method()
  found = fgl.gaussians(after().memory)
  before = loss_and_score(roles.shared['head'], found)
  now = loss_and_score(after().roles.shared['head'], found)
  assert now[0] < before[0] - 0.2 and now[1] > before[1] + 0.1


def test_classes_that_lie_apart_are_told_apart():
  means = 3 * jnp.eye(world.CLASSES, len(after().memory['squares']))
  held = jnp.arange(world.CLASSES) != 1
  found = fgl.Gaussians(held, means, 0.3 * jnp.eye(means.shape[1]))
  frozen = method()[1].frozen
  head = fgl.learned(world.setting(), frozen, found, CHOICE, jax.random.key(0))
  assert loss_and_score(head, found)[1] > 0.99


def test_nobody_s_statistics_change_nothing():
  algorithm, roles = method()
  some = cohort.one_round(
    algorithm,
    roles,
    world.cohort_rows(),
    world.DENSE,
    memory=after().memory,
    weights=np.zeros(3, np.float32),
  )
  world.same(some.memory, after().memory)
  world.same(some.roles.shared, roles.shared)


@pytest.mark.slow
def test_fedavg_goes_on_from_that_head():
  _, roles = method()
  learned = roles._replace(shared=after().roles.shared)
  tuned = fgl.tuned(world.setting())
  found = tuned.begin(jax.random.key(0), learned)
  world.same(found.shared, learned.shared)
  batch = columns.take(world.table(), jnp.arange(4))
  batch = columns.complete(tuned, found, batch, world.DENSE)
  out = tuned.predict(found, batch, world.DENSE).logits
  base, head = found.frozen['base'], world.start().frozen['head']
  np.testing.assert_allclose(
    out['pretrained'],
    world.backbone().logits(base, head, batch['features']),
    atol=1e-5,
  )
