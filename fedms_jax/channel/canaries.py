"""Canaries: clients that send a random direction, or nothing, to be looked for
in what is released."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.contract import Channel, Message, Sender
from fedms_jax.core.types import Tree


class Canaries(NamedTuple):
  """clients: the canaries, ascending. included: which of them send their
  direction; the others send zeros, as if they were not there. norm: of what is
  sent, the clip of the run. seed: of the directions."""

  clients: tuple[int, ...]
  included: tuple[bool, ...]
  norm: float
  seed: int = 0


@functools.lru_cache(maxsize=16)
def canaries(how: Canaries) -> Channel:
  """The channel in which canaries send `direction` times the norm in place of
  what they learned, and zeros in place of their extras (arXiv 2302.03098, alg.
  1). All rounds must train the same blocks."""

  def init(key, message: Message) -> Tree:
    del key, message
    return {
      'clients': jnp.asarray(how.clients, jnp.uint32),
      'included': jnp.asarray(how.included, bool),
    }

  def encode(state, message: Message, key, sender: Sender) -> Message:
    del key
    number = jnp.asarray(sender.id, jnp.uint32)
    mine = state['clients'] == number
    loud = jnp.any(mine & state['included'])
    size = jnp.where(loud, how.norm, 0.0)
    sung = tree.scale(direction(how.seed, number, message.update), size)
    silent = jax.tree.map(jnp.zeros_like, message.extras)
    update, extras = tree.where(
      jnp.any(mine), (sung, silent), (message.update, message.extras)
    )
    return message._replace(update=update, extras=extras)

  return Channel(
    init,
    encode,
    decode=lambda state, received, key: (state, received),
    bytes=lambda size: size,
  )


def direction(seed: int, client, like: Tree) -> Tree:
  """The unit vector of a canary, of the shape of a message's update."""
  key = jax.random.fold_in(jax.random.key(seed % 2**32), client)
  leaves, structure = jax.tree.flatten(like)
  keys = jax.random.split(key, len(leaves))
  drawn = [
    jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
  ]
  norm = jnp.sqrt(tree.squared_norm(drawn))
  return jax.tree.unflatten(structure, [x / norm for x in drawn])


def along(seed: int, client, moved: Tree):
  """How far what was released went along the direction of a canary, a
  scalar."""
  mine = direction(seed, client, moved)
  parts = jax.tree.map(lambda a, b: jnp.sum(a * b), mine, moved)
  return sum(jax.tree.leaves(parts))
