"""Channels that compress what is sent: up, of clients' changes, and down.

Each leaf of a block is a vector of its own, for the factors of LoRA have other
scales than each other. What is simulated is what the receiver makes of the
code, so that messages stay as they are; bytes are those of the code. Only what
trains of the shared tree is coded, not what a method sends beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.channel import codecs
from fedms_jax.channel.codecs import Codec
from fedms_jax.core import tree
from fedms_jax.core.contract import (
  Channel,
  Message,
  Received,
  Sender,
  identity,
)
from fedms_jax.core.types import Tree
from fedms_jax.core.wire import Opening, Wire

CODED = 'coded'  # the extra that says how many bits an entropy coder makes
TOLD = 'coded_bytes'  # the metric of it: of a client that sends, in the mean
NAMES = ('uniform', 'rotated', 'drive', 'terngrad', 'top_k', 'random_k', 'sign')


class Code(NamedTuple):
  """A code by name. levels: of uniform and rotated. share: of the numbers, of
  top_k and random_k. feedback: clients send later what was lost (arXiv
  1809.07599): they add it to their next message. decay: times what was lost
  before; under 1 what is old counts less, for clients that come seldom. common:
  the numbers of random_k are those of all clients of a round. entropy: whether
  rounds tell what an entropy coder would make of the numbers."""

  name: str
  levels: int = 256
  share: float = 0.01
  feedback: bool = False
  decay: float = 1.0
  common: bool = False
  entropy: bool = False


def codec(code: Code) -> Codec:
  """The code of vectors.

  Raises:
    ValueError: there is no such code.
  """
  makers: dict[str, Callable[[], Codec]] = {
    'uniform': lambda: codecs.uniform(code.levels),
    'rotated': lambda: codecs.rotated(code.levels),
    'drive': codecs.drive,
    'terngrad': codecs.terngrad,
    'top_k': lambda: codecs.top_k(code.share),
    'random_k': lambda: codecs.random_k(code.share, not code.feedback),
    'sign': codecs.signs,
  }
  if code.name not in makers:
    raise ValueError(
      f'`Code.name`={code.name!r} is no code; allowed: {", ".join(NAMES)}.'
    )
  return codecs.sparing(makers[code.name]())


def coded(how: Codec, part: Tree, key) -> Tree:
  """What is received of a role tree."""
  return _each(part, key, lambda x, v, k: how.apply(v, k).reshape(x.shape))


def entropy_bits(how: Codec, part: Tree, key) -> Any:
  """Bits of a role tree after an entropy coder, with the draws of `coded`."""
  if how.coded is None:
    raise ValueError(
      '`Code.entropy` finds nothing in what is spread evenly, or whose places '
      'follow from a seed. Leave it out, or take another code.'
    )
  made = how.coded
  found = _each(part, key, lambda x, v, k: jnp.sum(made(v, k)))
  return sum(jax.tree.leaves(found), jnp.float32(0))


def _each(part: Tree, key, take: Callable) -> Tree:
  """take(leaf, its vectors [n, d], a key of its own) of each leaf."""
  out = {}
  for number, (name, value) in enumerate(sorted(part.items())):
    leaves, structure = jax.tree.flatten(value)
    keys = jax.random.split(jax.random.fold_in(key, number), len(leaves) or 1)
    found = [
      take(x, x.reshape(_vectors(name, x.shape)), k)
      for x, k in zip(leaves, keys, strict=False)
    ]
    out[name] = jax.tree.unflatten(structure, found)
  return out


def nbytes(how: Codec, part: Tree) -> float:
  """Bytes of a role tree, of arrays or shapes, as it is coded. The bits of its
  vectors are written one after another, so that the end is padded alone."""
  bits = 0
  for name, value in part.items():
    for leaf in jax.tree.leaves(value):
      count, size = _vectors(name, leaf.shape)
      bits += count * how.bits(size) if size else 0
  return float(math.ceil(bits / 8))


def _vectors(name: str, shape) -> tuple[int, int]:
  """(vectors, numbers of each) of a leaf."""
  if tree.is_stacked(name):
    return shape[0], int(np.prod(shape[1:]))
  return 1, int(np.prod(shape))


@functools.lru_cache(maxsize=64)
def up(code: Code) -> Channel:
  """Clients send their changes coded."""
  how = codec(code)

  def encode(state, message: Message, key, sender: Sender) -> Message:
    del sender
    if code.common:
      key = jax.random.wrap_key_data(state['round'])
    sent = message._replace(update=coded(how, message.update, key))
    if not code.entropy:
      return sent
    bits = {'bits': entropy_bits(how, message.update, key)}
    return sent._replace(extras=message.extras | {CODED: bits})

  def keep(state, message: Message, key, sender: Sender, kept: Tree):
    weight = _weight(message)
    # Messages are weighed already; what was lost is not.
    wanted = jax.tree.map(
      lambda x, e: x + weight * code.decay * e, message.update, kept
    )
    sent = encode(state, message._replace(update=wanted), key, sender)
    lost = tree.subtract(wanted, sent.update)
    lost = tree.scale(lost, 1 / jnp.where(weight > 0, weight, 1.0))
    return sent, tree.where(weight > 0, lost, kept)

  def opened(state, opening: Opening, key) -> Tree:
    del opening
    return state | {'round': jax.random.key_data(key)}

  def init(key, message: Message) -> Tree:
    del message
    if code.entropy:
      return {TOLD: jnp.float32(0)}
    return {'round': jax.random.key_data(key)} if code.common else ()

  wire = Wire(
    open=opened if code.common else None,
    keep=keep if code.feedback else None,
    coded=functools.partial(nbytes, how),
  )
  made = identity()._replace(init=init, encode=encode, wire=wire)
  if not code.entropy:
    return made
  return made._replace(
    decode=_counted, measure=lambda state: {TOLD: state[TOLD]}
  )


def _counted(state, received: Received, key):
  """The decode of what says how long messages are after an entropy coder."""
  del key
  extras = dict(received.extras)
  bits = jnp.sum(extras.pop(CODED)['bits'])  # added up, or kept apart
  each = bits / 8 / jnp.maximum(jnp.sum(received.count), 1)
  return state | {TOLD: each}, received._replace(extras=extras)


def _weight(message: Message) -> Any:
  """What a client weighs: the largest number of its cover."""
  found = [jnp.max(x) for x in jax.tree.leaves(message.cover)]
  return functools.reduce(jnp.maximum, found, jnp.float32(0))


@functools.lru_cache(maxsize=64)
def down(code: Code) -> Channel:
  """Clients get the difference to what the stage began with coded, in every
  round from the start, so that it does not matter which rounds they have seen
  (as arXiv 1812.07210 codes whole models; the difference is ours). What the
  server has stays exact, and a client sends its change from what it has got."""
  how = codec(code)

  def receive(state, shared: Tree, key) -> Tree:
    first = state['first']
    moved = coded(how, tree.subtract(shared, first), key)
    return tree.add(first, moved)

  wire = Wire(
    begin=lambda state, shared: {'first': jax.tree.map(jnp.array, shared)},
    receive=receive,
    coded_down=functools.partial(nbytes, how),
  )
  return identity()._replace(wire=wire)
