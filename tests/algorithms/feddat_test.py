"""FedDAT: two adapters that teach each other, by an oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import bottleneck
from fedms_jax.adapters.bottleneck import Bottleneck
from fedms_jax.algorithms import distillation, feddat
from fedms_jax.core import activation
from tests import world
from tests.algorithms.two_models_test import noisy

# They compile for a minute.
pytestmark = pytest.mark.slow

RATE = 0.5  # of world.SGD
SPEC = Bottleneck(4, ('mlp/down',))


@functools.cache
def method(weight):
  """(algorithm, roles): both adapters learned, and different."""
  algorithm = feddat.feddat(world.setting(), SPEC, weight)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  return algorithm, roles._replace(
    shared=noisy(roles.shared, 1), personal=noisy(roles.personal, 2)
  )


def logits(roles, blocks, head, images):
  """The oracle: the whole model, without a plan."""
  model, base = world.backbone().adapted(SPEC), roles.frozen['base']
  x = model.embed(base, images)
  spans = activation.prefix(base['blocks'], blocks, model.blocks)
  return model.logits(base, head, model.features(
    base, model.run(spans, x, None), None
  ))  # fmt: skip


def kl(p, q):
  """Mean KL(softmax(p) || softmax(q))."""
  p, q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
  return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))


@pytest.mark.parametrize(('weight', 'steps'), [(0.5, 2), (0.2, 1)])
def test_a_step_of_each_after_the_other(weight, steps):
  """The teacher's copy stays what was sent, while the shared adapter moves."""
  algorithm, roles = method(weight)
  rows = world.cohort_rows(clients=1, steps=steps)
  data = world.columns()
  sent = roles.shared['blocks']

  def cross_entropy(found, labels):
    batch = {'labels': labels, 'mask': labels >= 0}
    return world.TASK.loss(found, batch)[0].mean()

  def teacher(own, images):
    mixed = bottleneck.mixed(0.5, own['blocks'], sent)
    return logits(roles, mixed, own['head'], images)

  def shared_loss(blocks, own, images, labels):
    student = logits(roles, blocks, own['head'], images)
    pull = kl(teacher(own, images), student)
    return (1 - weight) * cross_entropy(student, labels) + weight * pull

  def own_loss(own, moved, images, labels):
    student = logits(roles, moved, own['head'], images)
    said = teacher(own, images)
    pull = kl(jax.lax.stop_gradient(student), said)
    return (1 - weight) * cross_entropy(said, labels) + weight * pull

  def sgd(x, slope):
    return jax.tree.map(lambda x, g: x - RATE * g, x, slope)

  shared_slope = jax.jit(jax.grad(shared_loss))
  own_slope = jax.jit(jax.grad(own_loss))
  moved, own = sent, roles.personal
  for mine in rows[0]:
    batch = data['inputs'][mine], data['labels'][mine]
    moved = sgd(moved, shared_slope(moved, own, *batch))
    own = sgd(own, own_slope(own, moved, *batch))
  shared, personal, _ = world.train(algorithm, roles, rows)
  world.close(shared['blocks'], moved)
  world.close(jax.tree.map(lambda x: x[0], personal), own)


def test_without_distillation_the_own_adapter_teaches_nobody():
  algorithm, roles = method(0.0)
  rows = world.cohort_rows(clients=1, steps=1)
  other = roles._replace(
    personal=roles.personal | {'blocks': noisy(roles.shared['blocks'], 7)}
  )
  one, two = (world.train(algorithm, r, rows)[0] for r in (roles, other))
  world.same(one, two)
  taught, _ = method(0.5)
  one, two = (world.train(taught, r, rows)[0] for r in (roles, other))
  assert not all(
    np.allclose(x, y)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
  )


def test_divergence_by_hand():
  teacher = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
  student = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5], [0.8, 0.2]]))
  held = jnp.array([1.0, 1.0, 0.0])
  by_hand = (0.9 * np.log(1.8) + 0.1 * np.log(0.2)) / 2
  found = distillation.divergence(teacher, student, held)
  np.testing.assert_allclose(found, by_hand, rtol=1e-5)
  # Softer by t: what is compared are the logits over t, times t^2.
  soft = distillation.divergence(3 * teacher, 3 * student, held, 3.0)
  np.testing.assert_allclose(soft, 9 * by_hand, rtol=1e-5)
  slope = jax.grad(lambda x: distillation.divergence(x, student, held))(teacher)
  assert not np.any(slope)
