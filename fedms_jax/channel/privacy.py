"""Channels that keep clients private: clipping, noise, public denominators.

The clip acts at the client on everything that it sends, as one vector; the
noise is added to the sum at the server, once, before the server looks at
anything (DP-FedAvg, arXiv 1710.06963); or by every client to its own message
(local differential privacy). What clients say of themselves, such as who held
what, is replaced by what is public, or noised, too.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.contract import Channel, Message, Received, Sender
from fedms_jax.core.types import Tree

_BIT = 'unclipped'  # the extra that says whether a message was within the clip
_COUNTS, _BITS = 0x636F756E, 0x62697473  # of the round's key: other draws


class Adaptive(NamedTuple):
  """A clip that follows a quantile of the norms (arXiv 1905.03871, alg. 1).

  quantile: gamma, the share of messages that the clip should leave as they
  are. rate: eta. noise: sigma_b, of the sum of the bits, whose sensitivity is
  one half.
  """

  quantile: float
  rate: float
  noise: float


class Central(NamedTuple):
  """What the server releases.

  clip: C, or the first one. noise: z of the values, over the clip. adaptive:
  None: the clip stays. counts: sigma_c of noisy counts of who held a block;
  0: the counts are public. most: with noisy counts, the most blocks that a
  client may hold. scale: of all noise (see `systems/privacy.py`).
  coefficients: c of correlated noise, the first column of a banded Toeplitz
  matrix; (1,): the noise of rounds is independent.
  """

  clip: float
  noise: float
  adaptive: Adaptive | None = None
  counts: float = 0.0
  most: int = 0
  scale: float = 1.0
  coefficients: tuple[float, ...] = (1.0,)


def clipped(message: Message, clip) -> tuple[Message, Any]:
  """(the message within an L2 norm of `clip`, its norm before).

  The norm is that of all updates and extras together, in float32. A message
  that is not finite, or whose norm is not, becomes zeros.
  """
  sent = (message.update, message.extras)
  norm = jnp.sqrt(tree.squared_norm(sent))
  fine = jnp.isfinite(norm)
  factor = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-30))
  sent = jax.tree.map(
    lambda x: jnp.where(fine, x * factor, jnp.zeros_like(x)), sent
  )
  update, extras = sent
  return message._replace(update=update, extras=extras), norm


@functools.lru_cache(maxsize=64)
def central(how: Central) -> Channel:
  """User-level differential privacy by a server that is trusted.

  A client's message is clipped to C; to the sum the server adds noise of
  standard deviation z C in every coordinate that anybody could have sent, and
  divides by what was expected, not by what came: `Received.public`, for all
  that is known of a round then (per block, for schedules of SAL; ours). The
  channel's metrics: the clip of the round, the share of messages within it
  (noisy; adaptive clips alone), and the norm of the clipped sum over that of
  the noise.
  """

  def init(key, message: Message) -> Tree:
    del key
    _check(message)
    past = len(how.coefficients) - 1
    zeros = _sums(message)
    state = {'clip': jnp.float32(how.clip), 'used': jnp.float32(how.clip)}
    state |= {'ratio': jnp.float32(0), 'within': jnp.float32(0)}
    return state | {'past': [zeros] * past}

  def measure(state) -> dict[str, Any]:
    found = {'clip': state['used']}
    if how.noise:
      found['signal_to_noise'] = state['ratio']
    if how.adaptive is not None:
      found['within_clip'] = state['within']
    return found

  bit = 0 if how.adaptive is None else 4
  return Channel(
    init,
    encode=lambda state, message, key, sender: _encoded(how, state, message),
    decode=lambda state, received, key: _decoded(how, state, received, key),
    bytes=lambda size: size + bit,
    event=how,
    measure=measure,
  )


def _encoded(how: Central, state, message: Message) -> Message:
  """What leaves a client."""
  message, norm = clipped(message, state['clip'])
  if how.counts:
    message = message._replace(cover=_bounded(message.cover, how.most))
  if how.adaptive is None:
    return message
  bit = jnp.where(norm <= state['clip'], 0.5, -0.5)
  return message._replace(extras=message.extras | {_BIT: {'bit': bit}})


def _decoded(how: Central, state, received: Received, key):
  """(state, what the server gets of a round's sums)."""
  if received.public is None:
    raise ValueError(
      'a private sum is divided by what is public of a round, and nothing is '
      'known of this one. Give the stage a guard.'
    )
  if jnp.ndim(received.count):
    raise ValueError(
      'a private sum needs a server that adds messages up, and this one '
      'keeps them apart. Take another server.'
    )
  received, bits = _without_bits(received)
  cover = _cover(how, received, key)
  received, ratio, past = _noisy(how, state, received, cover, key)
  public = received.public
  assert public is not None  # it is checked above
  state = state | {'used': state['clip'], 'ratio': ratio, 'past': past}
  if how.adaptive is not None:
    state |= _next_clip(how, state['clip'], bits, public.clients, key)
  none = jnp.zeros_like(received.stale)
  return state, received._replace(cover=cover, count=public.clients, stale=none)


def _check(message: Message) -> None:
  """Raises `ValueError` for messages that say more of who held what than a
  number, or one for each block."""
  for key, held in message.cover.items():
    if jax.tree.structure(held).num_nodes > 1:
      raise ValueError(
        f'of {key!r} clients say who held what leaf by leaf, for which there '
        'are no public numbers to divide by. Take a method that does not.'
      )


def _sums(message: Message) -> Tree:
  """Zeros of the form of a round's sums of a message that covers all blocks."""
  return jax.tree.map(jnp.zeros_like, (message.update, message.extras))


def _bounded(cover: Tree, most: int) -> Tree:
  """Who held what as zeros and ones, of at most so many blocks."""

  def of(held):
    held = (held > 0).astype(jnp.float32)
    if held.ndim == 0:
      return held
    return held * (jnp.cumsum(held) <= most)

  return jax.tree.map(of, cover)


def _without_bits(received: Received) -> tuple[Received, Any]:
  extras = dict(received.extras)
  bits = extras.pop(_BIT, None)
  return received._replace(extras=extras), bits and bits['bit']


def _cover(how: Central, received: Received, key) -> Tree:
  """What sums are divided by, in the place of who held what."""
  public = received.public
  assert public is not None  # it is checked
  if not how.counts:
    return {key: public.holders[key] for key in received.cover}
  # Of all stacked keys the same blocks train, so that one count serves them.
  names = [name for name in received.cover if tree.is_stacked(name)]
  std = how.counts * how.scale
  found = {}
  if names:
    counts = received.cover[names[0]]
    noise = jax.random.normal(jax.random.fold_in(key, _COUNTS), counts.shape)
    counts = counts + std * noise
    # By the noisy counts, too, it is decided which blocks move at all.
    enough = jnp.maximum(1.0, 3.0 * std)
    found = dict.fromkeys(names, jnp.where(counts >= enough, counts, 0.0))
  return {key: found.get(key, public.clients) for key in received.cover}


def _noisy(how: Central, state, received: Received, cover: Tree, key):
  """(sums with noise where anybody may have sent something, their norm over
  that of the noise, the noise of the last rounds before it is scaled)."""
  sums = (received.update, received.extras)
  if not how.noise:
    return received, jnp.float32(0), state['past']
  leaves, structure = jax.tree.flatten(sums)
  keys = jax.random.split(key, len(leaves))
  fresh = jax.tree.unflatten(
    structure,
    [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)],
  )
  first, *rest = how.coefficients
  for c, before in zip(rest, state['past'], strict=True):
    fresh = jax.tree.map(lambda y, x, c=c: y - c * x, fresh, before)
  fresh = tree.scale(fresh, 1 / first)
  past = [fresh, *state['past']][: len(rest)]
  std = how.noise * how.scale * state['clip']
  where = {key: value > 0 for key, value in cover.items()}
  if how.counts:  # a block without noise would tell that nobody held it
    where = jax.tree.map(jnp.ones_like, where)
  noise = _masked(tree.scale(fresh, std), where)
  size = jnp.sqrt(tree.squared_norm(noise))
  ratio = jnp.sqrt(tree.squared_norm(sums)) / jnp.maximum(size, 1e-30)
  update, extras = tree.add(sums, noise)
  return received._replace(update=update, extras=extras), ratio, past


def _masked(noise: Tree, where: Tree) -> Tree:
  """Noise of the keys and blocks that anybody may have sent."""

  def role(part: Tree) -> Tree:
    out = {}
    for key, value in part.items():
      here = where.get(key, jnp.bool_(True))
      out[key] = jax.tree.map(
        lambda x, h=here: jnp.where(_tail(h, x), x, 0.0), value
      )
    return out

  update, extras = noise
  return role(update), {name: role(part) for name, part in extras.items()}


def _tail(x, like):
  return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))


def _next_clip(how: Central, clip, bits, clients, key) -> dict[str, Any]:
  """The clip of the next round, and the share that was within this one."""
  adaptive = how.adaptive
  assert adaptive is not None
  std = adaptive.noise * how.scale
  noise = std * jax.random.normal(jax.random.fold_in(key, _BITS), ())
  within = jnp.clip((bits + noise) / clients + 0.5, 0.0, 1.0)
  # Too few within it: the clip grows.
  step = -adaptive.rate * (within - adaptive.quantile)
  return {'clip': clip * jnp.exp(step), 'within': within}


@functools.lru_cache(maxsize=64)
def local(clip: float, noise: float) -> Channel:
  """Local differential privacy: every client clips its message to C and adds
  noise of standard deviation z C to it; nobody need be trusted.

  Who took part, and which blocks it trained, is known to the server. noise: z.
  """

  def encode(state, message: Message, key, sender: Sender) -> Message:
    del state, sender
    message, _ = clipped(message, clip)
    sent = (message.update, message.extras)
    leaves, structure = jax.tree.flatten(sent)
    keys = jax.random.split(key, len(leaves))
    noisy = [
      x + noise * clip * jax.random.normal(k, x.shape)
      for k, x in zip(keys, leaves, strict=True)
    ]
    update, extras = jax.tree.unflatten(structure, noisy)
    return message._replace(update=update, extras=extras)

  return Channel(
    init=lambda key, message: (),
    encode=encode,
    decode=lambda state, received, key: (state, received),
    bytes=lambda size: size,
    event=('local', clip, noise),
  )
