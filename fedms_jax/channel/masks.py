"""The masks of a secure sum, and who must be left to take them away.

The clients of a round sit on a ring, whose order is drawn anew in each. A mask
of two of them is added by the one with the higher number and subtracted by the
other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.channel.protocol import Secure
from fedms_jax.core import tree
from fedms_jax.core.contract import Message
from fedms_jax.core.types import Tree
from fedms_jax.core.wire import Opening


def opened(how: Secure, state: Tree, opening: Opening, key) -> Tree:
  """The state of a round: its clients on a ring."""
  count = len(opening.ids)
  if count > how.most:
    raise ValueError(
      f'{count} clients are in a round whose `Secure.most` is {how.most}. '
      'Raise it.'
    )
  empty = how.most - count
  ids = jnp.pad(jnp.asarray(opening.ids, jnp.uint32), (0, empty))
  there = jnp.pad(jnp.asarray(opening.there), (0, empty))
  member = jnp.arange(how.most) < count
  seat, own = jax.random.split(key)
  drawn = jax.random.uniform(seat, (how.most,))
  order = jnp.argsort(jnp.where(member, drawn, 2.0))
  held = {name: jnp.asarray(opening.held[name]) for name in state['held']}
  return state | {
    'key': jax.random.key_data(own),
    'ring': ids[order],
    'member': member,
    'there': there[order],
    'held': held,
  }


def alive(how: Secure, state: Tree):
  """Whether the sum is opened: everybody who was sampled has enough of its
  neighbors left, itself included."""
  member, there = state['member'], state['there'] & state['member']
  places = jnp.arange(how.most)
  n = jnp.maximum(jnp.sum(member), 1)
  apart = (places[:, None] - places[None]) % n
  near = jnp.minimum(apart, n - apart) <= how.half
  left = jnp.sum(near & there[None], axis=1)
  # The least over members; nobody is enough for nobody.
  least = jnp.min(jnp.where(member, left, how.most))
  return (least >= how.needed) & (jnp.sum(there) >= how.enough)


def _partners(state: Tree, place, step):
  """Who sits so many places on, and back, and whether it counts: in a small
  ring all may be met twice."""
  n = jnp.maximum(jnp.sum(state['member']), 1)
  yield (place + step) % n, 2 * step <= n
  yield (place - step) % n, 2 * step < n


class Like(NamedTuple):
  """Leaves of a message: their shapes, their keys, and which have a row for
  each block."""

  shapes: tuple[tuple[int, ...], ...]
  names: tuple[str, ...]
  stacked: tuple[bool, ...]


def like_of(message: Message) -> Like:
  """The leaves of a message, in the order of `jax.tree.leaves`."""
  shapes, names = [], []
  for part in (message.update, message.extras, message.cover):
    for path, leaf in jax.tree_util.tree_flatten_with_path(part)[0]:
      level = 1 if part is message.extras else 0
      names.append(path[level].key)
      shapes.append(leaf.shape)
  stacked = tuple(map(tree.is_stacked, names))
  return Like(tuple(shapes), tuple(names), stacked)


def added(message: Message, mask: list) -> Message:
  leaves, structure = jax.tree.flatten(message)
  found = [x + m for x, m in zip(leaves, mask, strict=True)]
  return jax.tree.unflatten(structure, found)


def bits(how: Secure, like: Like, key) -> list:
  """A mask of a message. A row of a block follows from its number among those
  that are sent, so that the server can make it for whichever are."""
  out = []
  for number, (shape, stacked) in enumerate(
    zip(like.shapes, like.stacked, strict=True)
  ):
    one = jax.random.fold_in(key, number)
    whole = (how.blocks, *shape[1:]) if stacked else shape
    mask = jax.random.bits(one, whole, jnp.uint32)
    out.append(mask[: shape[0]] if stacked else mask)
  return out


def masks(how: Secure, state: Tree, like: Like, place, which) -> list:
  """The sum of the masks of the client at a place of the ring: its own one, and
  those with neighbors that are in `which` [most]; None: its own one."""
  key = jax.random.wrap_key_data(state['key'])
  me = state['ring'][place]
  mine = jax.random.fold_in(jax.random.fold_in(key, me), me)
  total = bits(how, like, mine)
  if which is None:
    return total

  def pair(step, total):
    for partner, counts in _partners(state, place, step):
      other = state['ring'][partner]
      low, high = jnp.minimum(me, other), jnp.maximum(me, other)
      secret = jax.random.fold_in(jax.random.fold_in(key, low), high)
      counts = counts & which[partner]
      total = [
        jnp.where(counts, jnp.where(other < me, x + m, x - m), x)
        for x, m in zip(total, bits(how, like, secret), strict=True)
      ]
    return total

  return jax.lax.fori_loop(1, how.half + 1, pair, total)


def unmasked(how: Secure, state: Tree, total: Message) -> Message:
  """The sum without the masks: own ones of those who are there, and what those
  of the others have left in it."""
  like = like_of(total)
  there = state['there'] & state['member']
  gone = state['member'] & ~state['there']

  def all_of(some: bool):
    def one(place, left):
      mask = masks(how, state, like, place, gone if some else None)
      return [
        jnp.where(there[place], x - m, x)
        for x, m in zip(left, mask, strict=True)
      ]

    zeros = [jnp.zeros(shape, jnp.uint32) for shape in like.shapes]
    return jax.lax.fori_loop(0, how.most, one, zeros)

  # Where all are there, nothing but their own masks is left.
  minus = jax.lax.cond(
    jnp.any(gone), lambda: all_of(True), lambda: all_of(False)
  )
  found = []
  for name, stacked, mask in zip(like.names, like.stacked, minus, strict=True):
    held = state['held'].get(name, jnp.bool_(True))
    if stacked:
      # Masks are of rows as they were sent; here, of all blocks.
      row = jnp.maximum(jnp.cumsum(held) - 1, 0)
      mask = mask[row]
    held = held.reshape(held.shape + (1,) * (mask.ndim - held.ndim))
    found.append(jnp.where(held, mask, jnp.uint32(0)))
  return added(total, found)
