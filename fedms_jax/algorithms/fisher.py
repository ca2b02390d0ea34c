"""How much a task depends on each parameter: a round that measures it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedms_jax.algorithms.continual import ANCHOR, FISHER, KEY, SERVER
from fedms_jax.core import tree
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Context,
  Message,
  Received,
  Sender,
  Server,
  Start,
)
from fedms_jax.core.types import Batch, Roles, Tree


@functools.lru_cache(maxsize=64)
def measured(algorithm: Algorithm, slope: Algorithm, decay: float) -> Algorithm:
  """The stage that measures what a task depends on: nothing is trained.

  F_i is the mean over all clients' rows of the square of the gradient of each
  row by itself (Kirkpatrick et al., arXiv 1612.00796), at the server's model,
  which becomes w*: so it is the same for any partition. F of the tasks before
  is kept, times `decay` (online EWC, arXiv 1805.06370). Its server gets sums
  alone.

  algorithm: of the task, as `continual.through` gives it. slope: the same by
  plain sgd(1).
  """

  def close(roles: Roles, memory, received: Received, context: Context):
    del context
    rows = received.extras['measured']['rows']
    mine = roles.frozen[KEY]
    found = tree.scale(received.update, 1.0 / jnp.maximum(rows, 1.0))
    sums = tree.scale(mine[FISHER], decay)
    for name, more in found.items():
      sums[name] = tree.add(sums[name], more)
    anchor = jax.tree.map(jnp.copy, roles.shared)
    new = tree.where(rows > 0, mine | {FISHER: sums, ANCHOR: anchor}, mine)
    return roles._replace(frozen=roles.frozen | {KEY: new}), memory, {}

  return measuring(algorithm, 'fisher', close)._replace(
    update=_squares(algorithm, slope.update)
  )


def measuring(algorithm: Algorithm, what: str, close: Callable) -> Algorithm:
  """The stage of one round after a task's, that trains nothing: its server gets
  sums over all rows. close: as `Server.step`. The update is still the task's
  own."""
  inner = algorithm.server

  def begin(key, before: Roles) -> Roles:
    del key
    frozen = {k: x for k, x in before.frozen.items() if k != SERVER}
    shared = jax.tree.map(jnp.copy, before.shared)
    return before._replace(frozen=frozen, shared=shared)

  def send(before, message: Message, weight, sender: Sender) -> Message:
    del before, sender
    return tree.scale(message, (weight > 0).astype(jnp.float32))

  return algorithm._replace(
    name=f'{algorithm.name}_{what}',
    begin=begin,
    server=Server(inner.init, send, 'sum', close, inner.broadcast),
    traffic=None,
  )


def _squares(algorithm: Algorithm, slope: ClientUpdate) -> ClientUpdate:
  """Adds up the squares of single rows' gradients. slope: by plain sgd(1)."""

  def before(start: Start) -> Tree:
    return tree.narrow(start.roles.shared, algorithm.masks(start.plan)[0])

  def begin(start: Start) -> Tree:
    nothing = jax.tree.map(jnp.zeros_like, before(start))
    return {'squares': nothing, 'rows': jnp.float32(0)}

  def step(carry, start: Start, batch: Batch, key) -> tuple[Tree, Any]:
    def one(row):
      alone = jax.tree.map(lambda x: x[None], row)
      moved, sums = slope.step(slope.begin(start), start, alone, key)
      message, _ = slope.finish(moved, start)
      slopes = tree.subtract(before(start), message.update)
      held = row['mask'].astype(jnp.float32)
      return jax.tree.map(lambda g: held * jnp.square(g), slopes), sums

    squares, sums = jax.tree.map(lambda x: jnp.sum(x, 0), jax.vmap(one)(batch))
    rows = carry['rows'] + jnp.sum(batch['mask'].astype(jnp.float32))
    squares = tree.add(carry['squares'], squares)
    return {'squares': squares, 'rows': rows}, sums

  def finish(carry, start: Start):
    message = Message(carry['squares'], {'measured': {'rows': carry['rows']}})
    return message, start.roles.personal

  return ClientUpdate(begin, step, finish, slope.sums)
