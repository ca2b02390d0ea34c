"""Channels in which malicious clients send something else than they learned.

The members of a channel that follow, such as a clip, are put upon what these
clients send as well. Who is malicious, and when, follows from the client's
number and the round. What is changed is the update alone: extras, covers and
weights are sent as they are.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.contract import Channel, Message, Received, Sender
from fedms_jax.core.shapes import tail
from fedms_jax.core.types import Tree

SIMPLE = ('sign_flip', 'gaussian', 'replacement')
# Of what all others send, so that messages must be kept apart.
INFORMED = ('alie', 'ipm')
_NAME = 'attack'  # the extra that says who is malicious
_FOREVER = 2**31 - 1


class Attack(NamedTuple):
  """What malicious clients send in the rounds [start, stop) of a stage.

  kind, of an update d: 'sign_flip', -scale * d; 'gaussian', N(0, scale^2) in
  each coordinate; 'replacement', scale * d (arXiv 1807.00459, eq. 3), then
  within an L2 norm of `bound`, if that is not 0; of the mean m and the
  deviation s, by coordinate, of what the honest clients of the round send:
  'alie', m - scale * s (arXiv 1902.06156, alg. 3; 0: with the z of its eq. 3),
  'ipm', -scale * m (arXiv 1903.03936). clients: the malicious ones. weighed:
  whether updates are sent times what their client weighs, as
  `averaged.mean` does.
  """

  kind: str
  clients: tuple[int, ...]
  scale: float = 1.0
  start: int = 0
  stop: int = _FOREVER
  bound: float = 0.0
  weighed: bool = True


@functools.lru_cache(maxsize=64)
def attack(how: Attack) -> Channel:
  """The channel of an attack. Those of `INFORMED` need servers that keep
  messages apart."""
  informed = how.kind in INFORMED

  def init(key, message: Message) -> Tree:
    del key, message
    return {'clients': jnp.asarray(how.clients, jnp.uint32)}

  def encode(state, message: Message, key, sender: Sender) -> Message:
    bad = _malicious(how, state, sender)
    if informed:
      mark = {'bad': bad.astype(jnp.float32)}
      return message._replace(extras=message.extras | {_NAME: mark})
    update = tree.where(bad, _sent(how, message, key), message.update)
    return message._replace(update=update)

  def decode(state, received: Received, key):
    del key
    return state, _crafted(how, received) if informed else received

  return Channel(init, encode, decode, bytes=lambda size: size)


def _malicious(how: Attack, state, sender: Sender):
  """Whether the sender is malicious in this round."""
  number = jnp.asarray(sender.id, jnp.uint32)
  now = (sender.round >= how.start) & (sender.round < how.stop)
  return jnp.any(state['clients'] == number) & now


def _sent(how: Attack, message: Message, key) -> Tree:
  """What a malicious client sends instead of its update."""
  if how.kind == 'sign_flip':
    return tree.scale(message.update, -how.scale)
  if how.kind == 'gaussian':
    leaves, structure = jax.tree.flatten(message.update)
    keys = jax.random.split(key, len(leaves))
    noise = [
      how.scale * jax.random.normal(k, x.shape, x.dtype)
      for k, x in zip(keys, leaves, strict=True)
    ]
    noise = jax.tree.unflatten(structure, noise)
    return _times(noise, message.cover) if how.weighed else noise
  update = tree.scale(message.update, how.scale)
  if not how.bound:
    return update
  plain = _over(update, message.cover) if how.weighed else update
  norm = jnp.sqrt(tree.squared_norm(plain))
  return tree.scale(
    update, jnp.minimum(1.0, how.bound / jnp.maximum(norm, 1e-30))
  )


def _times(update: Tree, cover: Tree) -> Tree:
  """Updates times what their holders weigh; covers are a tree prefix."""
  return jax.tree.map(
    lambda c, part: jax.tree.map(lambda x: x * tail(c, x), part), cover, update
  )


def _over(update: Tree, cover: Tree) -> Tree:
  """The inverse of `_times`; what nobody held is zero."""
  inverse = jax.tree.map(
    lambda c: jnp.where(c > 0, 1 / jnp.maximum(c, 1e-12), 0.0), cover
  )
  return _times(update, inverse)


def _crafted(how: Attack, received: Received) -> Received:
  """Messages [K, ...], where those of malicious clients are made of what the
  honest ones have sent."""
  if not jnp.ndim(received.count):
    raise ValueError(
      f'`Attack.kind`={how.kind} looks at the messages of others, and this '
      'server adds them up. Keep them apart.'
    )
  extras = dict(received.extras)
  bad = extras.pop(_NAME)['bad']
  there = received.count > 0
  size = jnp.sum(there)
  liars = jnp.sum((bad > 0) & there)
  scale = how.scale
  if how.kind == 'alie' and not scale:
    scale = usual_z(size, liars)

  def made(held, part: Tree) -> Tree:
    weight = held if how.weighed else (held > 0).astype(jnp.float32)
    mine = (held > 0) & (tail(bad, held) > 0)
    honest = ((held > 0) & ~mine).astype(jnp.float32)

    def leaf(x):
      plain = x / tail(jnp.maximum(weight, 1e-12), x)
      lie = _lie(how, plain, tail(honest, x), scale) * tail(weight, x)
      return jnp.where(tail(mine, x), lie, x)

    return jax.tree.map(leaf, part)

  update = jax.tree.map(made, received.cover, received.update)
  return received._replace(update=update, extras=extras)


def _lie(how: Attack, x, honest, scale):
  """What malicious clients send [1, ...] of updates [K, ...], of which the
  `honest` count."""
  count = jnp.maximum(jnp.sum(honest, axis=0, keepdims=True), 1.0)
  mean = jnp.sum(x * honest, axis=0, keepdims=True) / count
  if how.kind == 'ipm':
    return -scale * mean
  square = jnp.sum(jnp.square(x - mean) * honest, axis=0, keepdims=True)
  return mean - scale * jnp.sqrt(square / count)


def usual_z(clients, malicious) -> Any:
  """The largest z that hides `malicious` of so many clients, arXiv 1902.06156,
  eq. 3: Phi^-1((n - m - s) / (n - m)) with s = floor(n / 2 + 1) - m; at least
  0 where there is no majority to hide in (ours)."""
  honest = jnp.maximum(clients - malicious, 1)
  supporters = jnp.floor(clients / 2 + 1) - malicious
  share = jnp.clip((honest - supporters) / honest, 0.5, 1 - 1e-6)
  return jax.scipy.special.ndtri(share)
