"""An algorithm whose clients train alone: a client update, nothing sent.

A client begins with the server's model and its own state and keeps all that its
local update makes of both. So what was global is fine-tuned, and what was
personal is adapted, by the method's own rule and the engine's one map.
"""

from __future__ import annotations

import functools

from fedms_jax.core import tree
from fedms_jax.core.contract import (
  PLAIN,
  Algorithm,
  ClientUpdate,
  Context,
  Message,
  Prediction,
  Received,
  Server,
  Start,
)
from fedms_jax.core.types import Batch, Plan, Roles, Tree


def personal(shared: Tree, own: Tree) -> Tree:
  """A client's personal tree under `alone`."""
  return {'shared': shared, 'personal': own}


def _inner(roles: Roles) -> Roles:
  """The roles as the method has them; without a client, only what is frozen."""
  mine = roles.personal
  if mine is None:
    return roles
  return Roles(roles.frozen, mine['shared'], mine['personal'])


def _silent() -> Server:
  """The server that hears nothing."""

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    del received, context
    return roles, memory, {}

  return Server(
    init=lambda key, roles: (),
    send=lambda before, message, weight, sender: message,
    reduction='sum',
    step=step,
  )


@functools.lru_cache(maxsize=32)
def alone(algorithm: Algorithm) -> Algorithm:
  """The algorithm with everything personal; see `personal`. What it derives
  from frozen values is what the algorithm derives, under the same name."""
  update = algorithm.update

  def of(start: Start) -> Start:
    return start.at(_inner(start.roles))

  def begin(start: Start):
    return update.begin(of(start))

  def step(carry, start: Start, batch: Batch, key):
    return update.step(carry, of(start), batch, key)

  def finish(carry, start: Start):
    begun = of(start)
    message, own = update.finish(carry, begun)
    trained = algorithm.masks(start.plan)[0]
    shared = tree.widen(begun.roles.shared, message.update, trained)
    return Message({}), personal(shared, own)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    return algorithm.predict(_inner(roles), batch, plan)

  return algorithm._replace(
    update=ClientUpdate(begin, step, finish, update.sums),
    predict=predict,
    server=_silent(),
    channel=PLAIN,  # there is nothing that would pass through another
    masks=lambda plan: (plan.active, plan.active),
    models=lambda roles: algorithm.models(_inner(roles)),
    traffic=None,
  )
