"""FGL: statistics are those of all rows, and draws are like the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import fgl
from fedms_jax.channel import privacy
from fedms_jax.core import columns, tree
from fedms_jax.core.contract import Message, Received
from fedms_jax.core.types import Public
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
  length = np.sqrt(2)  # what is sent is shorter by this
  np.testing.assert_allclose(root, [[length, 0], [0, 0]], atol=1e-6)


def test_a_clip_makes_rows_count_less_and_says_the_same():
  """All sums shrink alike, so that means and covariance are those of before."""
  sent = after().memory
  message = Message({}, {'statistics': sent}, {})
  found, norm = privacy.clipped(message, 0.01)
  short = found.extras['statistics']
  assert norm > 10
  np.testing.assert_allclose(tree.squared_norm(short), 1e-4, rtol=1e-4)
  world.close(
    fgl.gaussians(short)._asdict(), fgl.gaussians(sent)._asdict(), atol=1e-3
  )


def synthetic(seed, clients, rows=20, width=4):
  """(sum over clients of what each sends, clipped to one row; class means)."""
  rng = np.random.default_rng(seed)
  means = rng.normal(0, 1, (2, width))
  labels = rng.integers(0, 2, (clients, rows))
  x = means[labels] + 0.5 * rng.normal(size=(clients, rows, width))
  z, one = x / np.sqrt(width), np.eye(2)[labels]
  parts = {
    'counts': one.sum(1),
    'sums': np.einsum('krc,krd->kcd', one, z),
    'squares': np.einsum('krd,kre->kde', z, z),
  }
  flat = np.concatenate([v.reshape(clients, -1) for v in parts.values()], 1)
  factor = np.minimum(1, 1.7 / np.linalg.norm(flat, axis=1))
  total = {
    k: jnp.asarray(np.tensordot(factor, v, 1), jnp.float32)
    for k, v in parts.items()
  }
  return total, means


@pytest.mark.parametrize(('clients', 'near'), [(3000, True), (20, False)])
def test_a_private_sum_of_many_clients_still_shows_the_means(clients, near):
  total, means = synthetic(0, clients)
  how = privacy.central(privacy.Central(clip=1.7, noise=2.0))
  sent = Message({}, {'statistics': total}, {})
  state = how.init(jax.random.key(0), sent)
  public = Public(jnp.float32(clients), {})
  count, none = jnp.float32(clients), jnp.float32(0)
  received = Received(*sent, count, none, public)
  _, found = how.decode(state, received, jax.random.key(1))
  found = fgl.gaussians(found.extras['statistics'])
  gap = np.abs(found.means - means).max()
  assert (gap < 0.2) == near and np.isfinite(found.root).all()
  clean = fgl.gaussians(total)
  np.testing.assert_allclose(clean.means, means, atol=0.1 if near else 0.4)


def test_a_class_with_next_to_no_rows_is_taken_for_noise():
  even = jnp.array([1000.0, 1000.0, 0.5, 2.0, -3.0])
  statistics = {
    'counts': even, 'sums': jnp.ones((5, 2)), 'squares': jnp.eye(2)
  }  # fmt: skip
  found = fgl.gaussians(statistics)
  assert found.held.tolist() == [True, True, True, True, False]
  few = statistics | {'counts': even.at[2].set(0.3)}
  assert (
    not fgl.gaussians(few).held[2] and not fgl.gaussians(few).means[2].any()
  )


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
