"""Canaries through a private channel: as much is found as there is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.channel import canaries, chain, privacy
from fedms_jax.core import tree
from fedms_jax.core.contract import Message, Received, Sender
from fedms_jax.core.types import Public
from fedms_jax.systems import audit
from tests import world

KEY, CLIP, COUNT, SEED = jax.random.key(2), 0.5, 64, 5
WHO = tuple(range(10, 10 + COUNT))
IN = tuple(bool(x) for x in np.random.default_rng(3).random(COUNT) < 0.5)
HOW = canaries.Canaries(WHO, IN, CLIP, SEED)


def message():
  update = {'blocks': {'a': jnp.ones((3, 40))}, 'head': jnp.ones(80)}
  cover = {'blocks': jnp.ones(3), 'head': jnp.float32(1)}
  return Message(update, {'more': {'head': jnp.ones(4)}}, cover)


def test_a_canary_sends_its_direction_or_nothing():
  made = canaries.canaries(HOW)
  state = made.init(KEY, message())
  seen = []
  for number, loud in zip(WHO, IN, strict=True):
    sender = Sender(id=jnp.uint32(number))
    found = made.encode(state, message(), KEY, sender)
    norm = jnp.sqrt(tree.squared_norm((found.update, found.extras)))
    assert float(norm) == pytest.approx(CLIP if loud else 0.0, rel=1e-5)
    world.same(found.cover, message().cover)
    seen.append(np.concatenate([x.ravel() for x in
                                jax.tree.leaves(found.update)]))  # fmt: skip
  for number in (0, 9, 10 + COUNT):
    sender = Sender(id=jnp.uint32(number))
    world.same(made.encode(state, message(), KEY, sender), message())
  products = np.stack(seen)[np.array(IN)]
  cosines = (products @ products.T / CLIP**2)[~np.eye(sum(IN), dtype=bool)]
  assert np.abs(cosines).max() < 5 / np.sqrt(200)  # of random directions


@functools.cache
def scores(noise: float, rounds: int = 4):
  """What is found along canaries' directions, all of whom are in each round."""
  made = chain(
    canaries.canaries(HOW), privacy.central(privacy.Central(CLIP, noise))
  )
  known = Public(
    jnp.float32(COUNT),
    {'blocks': jnp.full(3, COUNT), 'head': jnp.float32(COUNT)},
  )
  state = made.init(KEY, message())
  ids = jnp.asarray(WHO, jnp.uint32)

  @jax.jit
  def one(state, key):
    sent = jax.vmap(lambda i: made.encode(state, message(), KEY, Sender(id=i)))(
      ids
    )
    total = jax.tree.map(lambda x: x.sum(0), sent)
    received = Received(*total, jnp.float32(COUNT), jnp.float32(0), known)
    state, received = made.decode(state, received, key)
    return state, received.update

  moved = jax.tree.map(jnp.zeros_like, message().update)
  for i in range(rounds):
    state, update = one(state, jax.random.fold_in(KEY, i))
    moved = tree.add(moved, update)
  along = jax.jit(lambda i: canaries.along(SEED, i, moved))
  return np.array([float(along(i)) for i in ids])


def test_without_noise_much_is_shown_and_under_much_noise_nothing():
  included = np.array(IN)
  bounds = {
    z: audit.one_run_of(scores(z), included, 1e-3)[0] for z in (0.0, 30.0)
  }
  assert bounds[0.0] > 1.0 and bounds[30.0] < 0.2
  clear = audit.auroc(scores(0.0)[included], scores(0.0)[~included])
  assert clear > 0.95
  hidden = audit.auroc(scores(30.0)[included], scores(30.0)[~included])
  assert abs(hidden - 0.5) < 3 * np.sqrt(1 / (6 * COUNT) * 2)


def test_what_is_shown_is_below_what_is_accounted():
  """Four Gaussian mechanisms of z: mu = 2 / z."""
  included = np.array(IN)
  for z in (1.0, 4.0):
    bound, _, _ = audit.one_run_of(scores(z), included, 1e-3)
    assert bound <= audit.gdp_epsilon(2 / z, 1e-3)
