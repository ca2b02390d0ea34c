"""Secure aggregation: a server that can open sums, and no message alone.

Clients send whole numbers modulo 2^m, whose sum wraps around exactly, whichever
order it is taken in. In the protocol that is simulated (SecAgg+, Bell et al.,
CCS 2020; SecAgg, Bonawitz et al., CCS 2017) the clients of a round are dealt
onto a ring, agree on a secret with each of their neighbors, and add to their
numbers a mask of their own and, for each neighbor, one that the neighbor
subtracts. Shares of all secrets lie with the neighbors, so that the server can
take away the own masks of those whose messages came, and what is left of the
masks of those whose messages did not. With fewer live neighbors than shares
that it takes, for anyone who was sampled, nothing is opened: the round moves
nothing.

The masks are the same numbers of a generator on both sides; that nobody else
could make them is what keys are for, which are counted and not made.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from fedms_jax.channel import discrete, masks, protocol
from fedms_jax.channel.protocol import WORD, Secure
from fedms_jax.core import tree
from fedms_jax.core.contract import Channel, Message, Received, Sender
from fedms_jax.core.types import Tree
from fedms_jax.core.wire import Wire

SATURATED = 'saturated'  # the extra that says how much was out of range


@functools.lru_cache(maxsize=64)
def secure(how: Secure) -> Channel:
  """The channel of a secure sum.

  A message is scaled to the largest weight, so that nobody counts for more
  than that: who weighs more is scaled down. Its metrics: whether nothing was
  opened and, without noise, the share of numbers that were out of range, those
  of too large a weight among them.

  Raises:
    ValueError: see `protocol.check`.
  """
  protocol.check(how)

  def init(key, message: Message) -> Tree:
    held = {
      name: jnp.zeros((how.blocks,) if tree.is_stacked(name) else (), bool)
      for part in (message.update, *message.extras.values())
      for name in part
    }
    nobody = jnp.zeros(how.most, bool)
    return {
      'key': jax.random.key_data(key),
      'ring': jnp.zeros(how.most, jnp.uint32),
      'member': nobody,
      'there': nobody,
      'held': held,
      'saturated': jnp.float32(0),
      'aborted': jnp.float32(0),
    }

  def measure(state: Tree) -> dict[str, Any]:
    told = ('aborted',) if how.noise else ('saturated', 'aborted')
    return {name: state[name] for name in told}

  wire = Wire(
    open=lambda state, opening, key: masks.opened(how, state, opening, key),
    coded=functools.partial(protocol.nbytes, how),
    keys=protocol.keys(how.shares),
  )
  return Channel(
    init,
    encode=lambda state, message, key, sender: _encoded(
      how, state, message, key, sender
    ),
    decode=lambda state, received, key: _decoded(how, state, received),
    bytes=lambda size: size,
    event=None if how.noise is None else how,
    measure=measure,
    wire=wire,
  )


def _encoded(how: Secure, state, message: Message, key, sender: Sender):
  """What leaves a client: uint32 everywhere."""
  weight = [jnp.max(x) for x in jax.tree.leaves(message.cover)]
  weight = functools.reduce(jnp.maximum, weight, jnp.float32(0))
  over = weight > how.weight
  factor = jnp.where(over, how.weight / jnp.maximum(weight, 1e-30), 1.0)
  sent = (message.update, message.extras)
  unit = factor / (how.range * how.weight)
  numbers, outside = discrete.whole(
    tree.scale(sent, unit), how.levels, key, how.noise
  )
  size = max(1, tree.size(sent))
  share = jnp.where(over, 1.0, outside / size)
  if how.noise is not None:  # it would be told without any
    share = jnp.float32(0)
  unit = _cover_unit(how)
  cover = jax.tree.map(
    lambda x: jnp.rint(x * factor * unit).astype(jnp.int32), message.cover
  )
  share = jnp.ceil(share * how.levels).astype(jnp.int32)
  update, extras = numbers
  extras = extras | {SATURATED: {'share': share}}
  found = jax.tree.map(_word, Message(update, extras, cover))
  if how.masked:
    place = jnp.argmax((state['ring'] == sender.id) & state['member'])
    like = masks.like_of(found)
    mask = masks.masks(how, state, like, place, state['member'])
    found = masks.added(found, mask)
  return jax.tree.map(lambda x: x & _most(how), found)


def _decoded(how: Secure, state: Tree, received: Received):
  """(state, the sum of the values) of a round's sums."""
  if jnp.ndim(received.count):
    raise ValueError(
      'a secure sum needs a server that adds messages up, and this one keeps '
      'them apart. Take another server.'
    )
  total = Message(received.update, received.extras, received.cover)
  if how.masked:
    total = masks.unmasked(how, state, total)
  total = jax.tree.map(lambda x: _signed(how, x & _most(how)), total)
  fine = masks.alive(how, state)
  clients = jnp.sum(state['there'] & state['member'])
  extras = dict(total.extras)
  share = extras.pop(SATURATED)['share'].astype(jnp.float32) / how.levels
  state = state | {
    'aborted': jnp.where(fine, 0.0, 1.0),
    'saturated': jnp.where(fine, share / jnp.maximum(clients, 1), 0.0),
  }
  unit = how.levels / (how.range * how.weight)
  update, extras, cover = (
    jax.tree.map(lambda x, u=u: jnp.where(fine, x / u, 0.0), part)
    for part, u in (
      (total.update, unit),
      (extras, unit),
      (total.cover, _cover_unit(how)),
    )
  )
  count = jnp.where(fine, received.count, 0.0)
  return state, received._replace(
    update=update, extras=extras, cover=cover, count=count
  )


def _cover_unit(how: Secure) -> float:
  """What weights are multiplied with. Whole ones stay exact where they fit, for
  which this is a power of two."""
  fits = how.levels // max(1, math.ceil(how.weight))
  if not fits:
    return how.levels / how.weight
  return float(2 ** math.floor(math.log2(fits)))


def _most(how: Secure):
  return jnp.uint32(2**how.word - 1)


def _word(x):
  """Whole numbers as uint32, negative ones from the top."""
  return jax.lax.bitcast_convert_type(x.astype(jnp.int32), jnp.uint32)


def _signed(how: Secure, x):
  """Numbers modulo 2^m as float32: those of the upper half are negative. Whole
  numbers decide it, of which float32 has but 24 bits."""
  if how.word < WORD:
    top = jnp.uint32(2 ** (how.word - 1))
    x = jnp.where(x >= top, x - jnp.uint32(2**how.word), x)
  whole = jax.lax.bitcast_convert_type(x, jnp.int32)
  return whole.astype(jnp.float32)
