"""Servers that average: coverage-aware means, a server optimizer, and what
comes after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.core import tree
from fedms_jax.core.contract import Context, Message, Received, Sender, Server
from fedms_jax.core.shapes import tail
from fedms_jax.core.types import Roles, Tree

_LAST = 'last'  # of the memory: what an aggregator has changed last
_PAST = 'past'  # of the memory: what an aggregator knows of earlier rounds


class Past(NamedTuple):
  """What an aggregator knows of earlier rounds.

  init: shared tree -> memory. merge: (shared tree before, received, memory) ->
  (after, memory), in place of `Aggregator.merge`.
  """

  init: Callable[[Tree], Tree]
  merge: Callable[[Tree, Received, Tree], tuple[Tree, Tree]]


class Aggregator(NamedTuple):
  """How messages become one shared tree.

  send, reduction: see `Server`. merge: (shared tree before, received) -> after.
  measure: (before, received) -> metrics of the round by name; None: nothing.
  draw: (before, received, what it changed in the round before, key) -> after,
  of one that draws or remembers; None: `merge` is all of it. past: of one that
  remembers more.
  """

  send: Callable[[Tree, Message, Any, Sender], Message]
  reduction: Literal['sum', 'stack']
  merge: Callable[[Tree, Received], Tree]
  measure: Callable[[Tree, Received], dict[str, Any]] | None = None
  draw: Callable[[Tree, Received, Tree, Any], Tree] | None = None
  past: Past | None = None


def averaged(
  aggregator: Aggregator, optimizer: optax.GradientTransformation
) -> Server:
  """The server whose step is what an aggregator gives, by an optimizer.

  The difference to what the aggregator gives is the gradient of the server
  optimizer (FedOpt, arXiv 2003.00295), whose state, one for each block of
  stacked keys so that a newly active block starts fresh, is the memory. What
  nobody held is untouched, optimizer state included.
  """

  def init(key, roles: Roles) -> Tree:
    del key
    start = optimizer.init
    states = {
      key: jax.vmap(start)(value) if tree.is_stacked(key) else start(value)
      for key, value in roles.shared.items()
    }
    if aggregator.past is not None:
      return states | {_PAST: aggregator.past.init(roles.shared)}
    if aggregator.draw is None:
      return states
    return states | {_LAST: jax.tree.map(jnp.zeros_like, roles.shared)}

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    before = {key: roles.shared[key] for key in received.cover}
    new = {}
    merged, states = _merged(aggregator, before, received, memory, context)
    gradient = tree.subtract(before, merged)
    for key, value in before.items():
      stacked = tree.is_stacked(key)
      move = jax.vmap(optimizer.update) if stacked else optimizer.update
      steps, state = move(gradient[key], memory[key], value)
      after = optax.apply_updates(value, steps)
      held = _held(received.cover[key], aggregator.reduction)
      new[key] = _where(held, after, value)
      held = _by_block(held, stacked)
      states[key] = _where(held, state, memory[key])
    measured = {}
    if aggregator.measure is not None:
      measured = aggregator.measure(before, received)
    shared = roles.shared | new
    return roles._replace(shared=shared), memory | states, measured

  return Server(init, aggregator.send, aggregator.reduction, step)


def _merged(
  aggregator: Aggregator,
  before: Tree,
  received: Received,
  memory: Tree,
  now: Context,
) -> tuple[Tree, Tree]:
  """(what an aggregator makes of messages, what of the memory is its own)."""
  if aggregator.past is not None:
    merged, past = aggregator.past.merge(before, received, memory[_PAST])
    return merged, {_PAST: past}
  if aggregator.draw is None:
    return aggregator.merge(before, received), {}
  last = {name: memory[_LAST][name] for name in before}
  merged = aggregator.draw(before, received, last, now.key)
  return merged, {_LAST: memory[_LAST] | tree.subtract(merged, before)}


def then(
  server: Server,
  step: Callable[[Roles, Received, Context], Roles],
  *,
  send: Callable[[Message, Any], dict[str, Tree]] | None = None,
) -> Server:
  """A server that takes a further step on the roles after its own.

  send: (message, weight) -> extras that are sent beside those of `server`.
  """

  def sent(before, message: Message, weight, sender: Sender) -> Message:
    found = server.send(before, message, weight, sender)
    if send is None:
      return found
    return found._replace(extras=found.extras | send(message, weight))

  def both(roles: Roles, memory, received: Received, context: Context):
    roles, memory, measured = server.step(roles, memory, received, context)
    return step(roles, received, context), memory, measured

  return server._replace(send=sent, step=both)


def meaning(server: Server) -> Server:
  """The plain mean in place of a server's own step, for measurements; clients
  see of its memory what they would see at first."""
  plain = averaged(mean(), optax.sgd(1.0))

  def init(key, roles: Roles) -> Tree:
    return {'own': server.init(key, roles), 'mean': plain.init(key, roles)}

  def send(before, message: Message, weight, sender: Sender) -> Message:
    return plain.send(before, message._replace(extras={}), weight, sender)

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    found = plain.step(roles, memory['mean'], received, context)
    roles, states, measured = found
    return roles, memory | {'mean': states}, measured

  seen = server.broadcast
  broadcast = None if seen is None else lambda memory: seen(memory['own'])
  return Server(init, send, 'sum', step, broadcast)


def _held(cover: Tree, reduction: str) -> Tree:
  """Whether anybody held what a cover stands for."""
  if reduction == 'stack':
    cover = jax.tree.map(lambda x: jnp.sum(x, axis=0), cover)
  return jax.tree.map(lambda x: x > 0, cover)


def _by_block(held: Tree, stacked: bool):
  """`_held` of a whole key: bool [L], or a scalar."""
  flat = [
    jnp.any(x.reshape(x.shape[0], -1), axis=1) if stacked else jnp.any(x)
    for x in jax.tree.leaves(held)
  ]
  return flat[0] if len(flat) == 1 else jnp.any(jnp.stack(flat), axis=0)


def _where(held: Tree, after: Tree, before: Tree) -> Tree:
  """`after` where it was held, else `before`."""

  def pick(here, x: Tree, y: Tree) -> Tree:
    return jax.tree.map(lambda x, y: jnp.where(tail(here, x), x, y), x, y)

  return jax.tree.map(pick, held, after, before)


def divide(total: Tree, cover: Tree) -> Tree:
  """Sums over weights, which are a tree prefix of them, broadcast from the
  left: a stacked key has a weight per block."""

  def ratio(weight, value: Tree) -> Tree:
    weight = jnp.maximum(weight, 1e-12)
    return jax.tree.map(lambda x: x / tail(weight, x), value)

  return jax.tree.map(ratio, cover, total)


def weighed(message: Message, weight) -> Message:
  """The message with its extras and its cover times the client's weight."""
  extras, cover = tree.scale((message.extras, message.cover), weight)
  return message._replace(extras=extras, cover=cover)


def as_trained(before, message: Message, weight, sender: Sender) -> Message:
  """What a client has trained, as it is; its weight is in the cover alone."""
  del before, sender
  return message._replace(cover=tree.scale(message.cover, weight))


def mean() -> Aggregator:
  """The sample-weighted mean (FedAvg, arXiv 1602.05629), per block over the
  clients that held it active. Sums are of differences, which keeps their
  rounding small."""

  def send(before, message: Message, weight, sender) -> Message:
    del sender
    moved = tree.subtract(message.update, before)
    cover = tree.scale(message.cover, weight)
    scaled = jax.tree.map(
      lambda c, x: jax.tree.map(lambda x: x * tail(c, x), x), cover, moved
    )
    return weighed(message, weight)._replace(update=scaled)

  def merge(before, received: Received) -> Tree:
    return tree.add(before, divide(received.update, received.cover))

  return Aggregator(send, 'sum', merge)


def mean_apart() -> Aggregator:
  """`mean` of messages that are kept apart, for servers that look at each."""

  def merge(before, received: Received) -> Tree:
    del before

    def weighted(cover, value: Tree) -> Tree:
      return jax.tree.map(lambda x: jnp.sum(x * tail(cover, x), axis=0), value)

    sums = jax.tree.map(weighted, received.cover, received.update)
    return divide(sums, jax.tree.map(lambda x: jnp.sum(x, 0), received.cover))

  return Aggregator(as_trained, 'stack', merge)
