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
# As far off as honest clients are from each other.
FITTED = ('min_max', 'min_sum')
# Of what all others send, so that messages must be kept apart.
INFORMED = ('alie', 'ipm', *FITTED)
_NAME = 'attack'  # the extra that says who is malicious
_FOREVER = 2**31 - 1


class Attack(NamedTuple):
  """What malicious clients send in the rounds [start, stop) of a stage.

  kind, of an update d: 'sign_flip', -scale * d; 'gaussian', N(0, scale^2) in
  each coordinate; 'replacement', scale * d (arXiv 1807.00459, eq. 3), then
  within an L2 norm of `bound`, if that is not 0; of the mean m and the
  deviation s, by coordinate, of what the honest clients of the round send:
  'alie', m - scale * s (arXiv 1902.06156, alg. 3; 0: with the z of its eq. 3),
  'ipm', -scale * m (arXiv 1903.03936); 'min_max' and 'min_sum', m + g p, see
  `fitted`, with p by `direction`: 'std', -s; 'unit', -m / ||m||; 'sign',
  -sign(m). clients: the malicious ones. weighed: whether updates are sent
  times what their client weighs, as `averaged.mean` does.
  """

  kind: str
  clients: tuple[int, ...]
  scale: float = 1.0
  start: int = 0
  stop: int = _FOREVER
  bound: float = 0.0
  weighed: bool = True
  direction: str = 'std'


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
  weight = received.cover
  if not how.weighed:
    weight = jax.tree.map(lambda x: (x > 0).astype(jnp.float32), weight)
  plain = _over(received.update, weight)
  mine = jax.tree.map(lambda x: (x > 0) & (tail(bad, x) > 0), received.cover)
  honest = jax.tree.map(
    lambda x, m: ((x > 0) & ~m).astype(jnp.float32), received.cover, mine
  )
  lies = _times(_lies(how, plain, honest, scale), weight)

  def put(m, lie: Tree, part: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(tail(m, a), a, b), lie, part)

  update = jax.tree.map(put, mine, lies, received.update)
  return received._replace(update=update, extras=extras)


def _lies(how: Attack, plain: Tree, honest: Tree, scale) -> Tree:
  """What malicious clients send [1, ...] of updates [K, ...], of which the
  `honest` ones, [K] or [K, L], count."""

  def moments(x, here):
    h = tail(here, x)
    count = jnp.maximum(jnp.sum(h, axis=0, keepdims=True), 1.0)
    mean = jnp.sum(x * h, axis=0, keepdims=True) / count
    square = jnp.sum(jnp.square(x - mean) * h, axis=0, keepdims=True)
    return mean, jnp.sqrt(square / count)

  def each(take) -> Tree:
    return jax.tree.map(
      lambda here, part: jax.tree.map(lambda x: take(*moments(x, here)), part),
      honest,
      plain,
    )

  if how.kind == 'ipm':
    return each(lambda mean, std: -scale * mean)
  if how.kind == 'alie':
    return each(lambda mean, std: mean - scale * std)
  mean = each(lambda mean, std: mean)
  if how.direction == 'std':
    toward = each(lambda mean, std: -std)
  elif how.direction == 'sign':
    toward = each(lambda mean, std: -jnp.sign(mean))
  else:
    norm = jnp.sqrt(jnp.maximum(tree.squared_norm(mean), 1e-30))
    toward = tree.scale(mean, -1 / norm)
  far = fitted(how.kind, plain, honest, mean, toward)
  return jax.tree.map(lambda m, p: m + far * p, mean, toward)


def fitted(kind: str, plain: Tree, honest: Tree, mean: Tree, toward: Tree):
  """How far a lie goes, a scalar: the largest g >= 0 (Shejwalkar and
  Houmansadr, Manipulating the Byzantine, NDSS 2021, eq. 8 and 9) with which
  mean + g toward is no farther from any honest update than two of these are
  from each other ('min_max'), or has to all of them no larger sum of squared
  distances than one of these has ('min_sum').

  plain: updates [K, ...]. honest: which of them count, [K], or [K, L] of
  stacked keys. mean, toward: [1, ...]. Where the paper halves intervals, this
  is the root of the squares. Where clients hold different blocks, two updates
  are compared by what both hold; that, too, is ours.
  """
  pairs, own, along, length = _compared(plain, honest, mean, toward)
  if kind == 'min_sum':
    most = jnp.max(jnp.sum(pairs, axis=1))
    return _root(jnp.sum(length), jnp.sum(along), jnp.sum(own) - most)
  roots = _root(length, along, own - jnp.max(pairs))
  there = length > 0  # who is not honest has no part in it
  nearest = jnp.min(jnp.where(there, roots, jnp.inf))
  return jnp.where(jnp.any(there), nearest, 0.0)


def _compared(plain: Tree, honest: Tree, mean: Tree, toward: Tree):
  """Of honest updates: squared distances of two [K, K]; and by update [K] that
  to the mean, (mean - update) . toward, ||toward||^2, of what it holds."""

  def of(here, part: Tree, center: Tree, way: Tree):
    found = [
      _compared_leaf(jnp.broadcast_to(here, x.shape[: here.ndim]), x, m, p)
      for x, m, p in zip(
        *(jax.tree.leaves(t) for t in (part, center, way)), strict=True
      )
    ]
    return tuple(sum(terms) for terms in zip(*found, strict=True))

  parts = jax.tree.map(of, honest, plain, mean, toward)
  found = jax.tree.leaves(parts, is_leaf=lambda x: isinstance(x, tuple))
  return tuple(sum(terms) for terms in zip(*found, strict=True))


def _compared_leaf(here, x, center, way):
  """See `_compared`; here [K, ...] is said of the first axes of x [K, ...]."""
  h = here.reshape(len(here), -1)

  def flat(value):
    return value.reshape(len(value), h.shape[1], -1).astype(jnp.float32)

  off = flat(x - center) * h[:, :, None]  # around the mean nothing cancels
  square = jnp.sum(jnp.square(off), axis=-1)
  both = jnp.einsum('iln,jln->ij', off, off, precision='highest')
  mixed = jnp.einsum('il,jl->ij', square, h, precision='highest')
  return (
    mixed + mixed.T - 2 * both,
    jnp.sum(square, axis=1),
    -jnp.sum(off * flat(way), axis=(1, 2)),
    jnp.sum(jnp.sum(jnp.square(flat(way)), axis=-1) * h, axis=1),
  )


def _root(a, b, c):
  """The larger root of a g^2 + 2 b g + c, at least 0."""
  inside = jnp.maximum(jnp.square(b) - a * c, 0.0)
  return jnp.maximum((jnp.sqrt(inside) - b) / jnp.maximum(a, 1e-30), 0.0)


def usual_z(clients, malicious) -> Any:
  """The largest z that hides `malicious` of so many clients, arXiv 1902.06156,
  eq. 3: Phi^-1((n - m - s) / (n - m)) with s = floor(n / 2 + 1) - m; at least
  0 where there is no majority to hide in (ours)."""
  honest = jnp.maximum(clients - malicious, 1)
  supporters = jnp.floor(clients / 2 + 1) - malicious
  share = jnp.clip((honest - supporters) / honest, 0.5, 1 - 1e-6)
  return jax.scipy.special.ndtri(share)
