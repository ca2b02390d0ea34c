"""pFedLoRA: an own model first, then the adapter that all share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import personal, pfedlora
from fedms_jax.core import client
from fedms_jax.core.contract import Moment, Start
from fedms_jax.core.types import Span
from fedms_jax.systems.ledger import Meter
from tests import world

RANK = 3


@functools.cache
def method(weight=0.5, share=0.5):
  choice = pfedlora.Choice(RANK, weight, share)
  algorithm = pfedlora.pfedlora(world.setting(), choice)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  return algorithm, world.trained(roles)


def finished(algorithm, roles, steps, taken):
  """(adapter, personal) after so many of the client's steps."""
  start = Start(roles, world.TOP, Moment(steps=steps))
  carry = (algorithm.update.begin(start), client.zero_sums(algorithm))
  for number in range(taken):
    rows = np.arange(1, 5, dtype=np.int32) + 4 * number
    carry = step(algorithm, carry, start, rows, number)
  message, own = algorithm.update.finish(carry[0], start)
  return message.update['adapter'], own


@functools.partial(jax.jit, static_argnums=0)
def step(algorithm, carry, start, rows, number):
  start = start._replace(plan=world.TOP)
  now = client.at_step(start, number)
  table, key = world.table(), jax.random.key(0)
  return client.one_step(algorithm, carry, now, table, rows, key)


def moved(x, y):
  return any(
    bool((a != b).any())
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
  )


def test_the_own_model_trains_first_and_the_adapter_after_it():
  algorithm, roles = method()
  before = roles.shared['adapter'], roles.personal
  first, second = (finished(algorithm, roles, steps=2, taken=n) for n in (1, 2))
  assert not moved(first[0], before[0]) and moved(first[1], before[1])
  assert moved(second[0], first[0]) and not moved(second[1], first[1])


def test_the_adapter_takes_the_step_of_its_own_loss_on_the_new_features():
  algorithm, roles = method()
  _, own = finished(algorithm, roles, steps=2, taken=1)
  rows = np.arange(5, 9)
  backbone, base = world.backbone(), roles.frozen['base']
  data = {k: v[rows] for k, v in world.table().items()}
  x = backbone.embed(base, data['inputs'])
  span = Span(0, world.BLOCKS, (base['blocks'], own['blocks']))
  adapted = world.setting().backbone

  def loss(adapter):
    y = backbone.features(base, adapted.run([span], x, None), None)
    logits = y @ adapter['down']['kernel'] @ adapter['up']['kernel']
    logits += adapter['up']['bias'][None]
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), data['labels']])

  slope = jax.jit(jax.grad(loss))(roles.shared['adapter'])
  found, _ = finished(algorithm, roles, steps=2, taken=2)
  expected = jax.tree.map(
    lambda p, g: p - 0.5 * g, roles.shared['adapter'], slope
  )
  assert moved(expected, roles.shared['adapter'])
  world.close(found, expected)


def test_the_own_model_takes_the_step_of_both_losses():
  """(1 - mu) times its own and mu times that of the adapter at rest."""
  mu = 0.3
  algorithm, roles = method(weight=mu)
  base, adapter = roles.frozen['base'], roles.shared['adapter']
  data = {k: v[1:5] for k, v in world.table().items()}
  backbone, adapted = world.backbone(), world.setting().backbone
  x = backbone.embed(base, data['inputs'])

  def cross_entropy(logits):
    chosen = jnp.arange(4), data['labels']
    return -jnp.mean(jax.nn.log_softmax(logits)[chosen])

  def loss(own):
    span = Span(0, world.BLOCKS, (base['blocks'], own['blocks']))
    y = backbone.features(base, adapted.run([span], x, None), None)
    mine = cross_entropy(backbone.logits(base, own['head'], y))
    other = cross_entropy(pfedlora.apply(adapter, y))
    return (1 - mu) * mine + mu * other

  def trains(path, slope):  # the last block and the head
    return slope.at[:2].set(0) if path[0].key == 'blocks' else slope

  slope = jax.jit(jax.grad(loss))(roles.personal)
  slope = jax.tree_util.tree_map_with_path(trains, slope)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, roles.personal, slope)
  _, own = finished(algorithm, roles, steps=2, taken=1)
  assert moved(expected, roles.personal)
  world.close(own, expected)


def test_without_the_adapter_s_loss_the_own_model_is_that_of_local_training():
  rows = world.cohort_rows(clients=1, steps=2)
  algorithm, roles = method(weight=0.0, share=0.99)
  _, own, _ = world.train(algorithm, roles, rows)
  alone = personal.local_only(world.setting())
  bare = roles._replace(shared={})
  world.close(own, world.train(alone, bare, rows)[1])
  heard, roles = method(weight=0.5, share=0.99)
  _, other, _ = world.train(heard, roles, rows)
  gap = np.abs(other['head']['kernel'] - own['head']['kernel']).max()
  assert gap > 1e-4


def test_the_adapter_alone_is_sent_and_it_costs_what_it_does():
  algorithm, roles = method()
  meter = Meter(algorithm, roles, batch=4, slots=0)
  size = RANK * (world.WIDTH + world.CLASSES) + world.CLASSES
  assert meter.traffic(world.TOP, world.TOP.active, 3) == (4 * size, 4 * size)
  more = algorithm.backbone.cost.head - world.backbone().cost.head
  assert more == 2 * RANK * (world.WIDTH + world.CLASSES)


@pytest.mark.parametrize('weight', [0.0, 0.5])
def test_the_shared_adapter_is_the_mean(weight):
  algorithm, roles = method(weight=weight)
  rows = world.cohort_rows()
  together, *_ = world.train(algorithm, roles, rows)
  sizes = (rows >= 0).sum((1, 2))
  alone = [world.train(algorithm, roles, rows[i : i + 1])[0] for i in range(3)]
  mean = jax.tree.map(
    lambda *xs: (
      sum(s * x for s, x in zip(sizes, xs, strict=True)) / sizes.sum()
    ),
    *alone,
  )
  world.close(together, mean)
