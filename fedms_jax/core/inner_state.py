"""What becomes of a client's optimizer when its round ends.

By itself `client.sgd` begins each round with a fresh one. Here it is kept by
the client (DiLoCo, arXiv 2311.08105), or averaged by the server beside the
weights (an option of Photon's, arXiv 2411.02908). And a server that trains by
itself is a federation of one client whose state the server keeps.

Both need every client to train all of its blocks in every round, so that the
state always has the same shape.

Beside it a client may keep what a lossy channel has kept back.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

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
from fedms_jax.core.types import Plan, Roles, Tree
from fedms_jax.core.wire import INNER, RESIDUAL

_STATE, _OPTIMIZER = 'state', 'optimizer'
_SERVER = 'server'  # of frozen: what the server shows of its memory


def _fresh(algorithm: Algorithm, roles: Roles) -> Tree:
  """The optimizer's state at the start of a client's first round."""
  plan = Plan((True,) * algorithm.backbone.blocks, 0)
  return algorithm.update.begin(Start(roles, plan))[_OPTIMIZER]


def model(personal: Tree) -> Tree:
  """What of a client's personal tree is part of its model."""
  return {key: x for key, x in personal.items() if key != INNER}


def kept(algorithm: Algorithm) -> Algorithm:
  """The algorithm, each of whose clients keeps its optimizer.

  algorithm: its update is `client.sgd`, and nothing else of it is personal.
  """
  update = algorithm.update

  def without(start: Start) -> Start:
    return start.at(start.roles._replace(personal={}))

  def begin(key, before: Roles) -> Roles:
    roles = algorithm.begin(key, before)
    state = _fresh(algorithm, roles)
    return roles._replace(personal={INNER: {_STATE: state}})

  def begin_client(start: Start) -> Tree:
    state = start.roles.personal[INNER][_STATE]
    return update.begin(without(start)) | {_OPTIMIZER: state}

  def step(carry, start: Start, batch, key):
    return update.step(carry, without(start), batch, key)

  def finish(carry, start: Start):
    message, _ = update.finish(carry, without(start))
    return message, {INNER: {_STATE: carry[_OPTIMIZER]}}

  def masks(plan: Plan):
    return algorithm.masks(plan)[0], {INNER: False}

  return algorithm._replace(
    begin=begin,
    update=ClientUpdate(begin_client, step, finish, update.sums),
    masks=masks,
  )


@functools.lru_cache(maxsize=64)
def with_residual(algorithm: Algorithm) -> Algorithm:
  """The algorithm, each of whose clients has a place for what its channel keeps
  back (see `Wire.keep`): zeros of the form of what trains of the shared tree.
  The method itself does not see it."""
  update = algorithm.update

  def without(roles: Roles) -> Roles:
    if not roles.personal:
      return roles
    return roles._replace(personal=model(roles.personal))

  def begin(key, before: Roles) -> Roles:
    roles = algorithm.begin(key, without(before))
    plan = Plan((True,) * algorithm.backbone.blocks, 0)
    trained = tree.narrow(roles.shared, algorithm.masks(plan)[0])
    zeros = {RESIDUAL: jax.tree.map(jnp.zeros_like, trained)}
    return roles._replace(personal=roles.personal | {INNER: zeros})

  def begin_client(start: Start) -> Tree:
    return update.begin(start.at(without(start.roles)))

  def step(carry, start: Start, batch, key):
    return update.step(carry, start.at(without(start.roles)), batch, key)

  def finish(carry, start: Start):
    message, own = update.finish(carry, start.at(without(start.roles)))
    return message, own | {INNER: start.roles.personal[INNER]}

  def predict(roles: Roles, batch, plan: Plan):
    return algorithm.predict(without(roles), batch, plan)

  return algorithm._replace(
    begin=begin,
    update=ClientUpdate(begin_client, step, finish, update.sums),
    predict=predict,
    models=lambda roles: algorithm.models(without(roles)),
  )


def averaged(algorithm: Algorithm) -> Algorithm:
  """The algorithm whose server averages the optimizers' states, by the
  clients' weights, and sends them the mean at the start of a round. Whole
  numbers, such as counts of steps, are rounded to whole ones."""

  def send(update: Server, before, message: Message, weight, sender: Sender):
    state = message.extras[INNER]
    rest = {k: x for k, x in message.extras.items() if k != INNER}
    found = update.send(before, message._replace(extras=rest), weight, sender)
    weighed = {_STATE: tree.scale(state[_STATE], weight), 'weight': weight}
    return found._replace(extras=found.extras | {INNER: weighed})

  def merged(memory: Tree, received: Received) -> Tree:
    sums = received.extras[INNER]
    weight = sums['weight']

    def mean(total, old):
      new = total / jnp.maximum(weight, 1e-12)
      if not jnp.issubdtype(old.dtype, jnp.inexact):
        new = jnp.rint(new)
      return jnp.where(weight > 0, new.astype(old.dtype), old)

    return jax.tree.map(mean, sums[_STATE], memory)

  def traffic(shapes: Roles, plan: Plan, ever, cohort: int):
    if algorithm.traffic is not None:
      up, down = algorithm.traffic(shapes, plan, ever, cohort)
    else:
      masks = algorithm.masks(plan)[0], algorithm.masks(Plan(ever, 0))[0]
      up, down = (tree.nbytes_of(shapes.shared, mask) for mask in masks)
    state = tree.nbytes(shapes.frozen[_SERVER][INNER])
    return up + state, down + state

  made = _with_state(algorithm, send, merged)
  return made._replace(traffic=traffic)


def central(algorithm: Algorithm) -> Algorithm:
  """The algorithm of a server that trains by itself: its one client's weights
  become the server's as they are, and its optimizer goes on from round to
  round, in the server's memory."""

  def send(update: Server, before, message: Message, weight, sender: Sender):
    del update, before, sender
    # Of clients that only fill a chunk nothing is added.
    return jax.tree.map(
      lambda x: jnp.where(weight > 0, x, jnp.zeros_like(x)), message
    )

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    del context
    there = received.count > 0
    new = tree.where(
      there, received.update, {k: roles.shared[k] for k in received.update}
    )
    return roles._replace(shared=roles.shared | new), memory, {}

  def merged(memory: Tree, received: Received) -> Tree:
    found = received.extras[INNER][_STATE]
    return tree.where(received.count > 0, found, memory)

  def plain(before, message: Message, weight, sender: Sender) -> Message:
    return send(server, before, message, weight, sender)

  server = Server(lambda key, roles: (), plain, 'sum', step)
  made = _with_state(algorithm._replace(server=server), send, merged)
  return made._replace(traffic=lambda *args: (0.0, 0.0))


def _with_state(algorithm: Algorithm, send, merged) -> Algorithm:
  """The algorithm whose server's memory has its clients' optimizer.

  send: (the algorithm's server, what `Server.send` gets) -> message. merged:
  (state, received) -> the next state.
  """
  update, server = algorithm.update, algorithm.server

  def begin(start: Start) -> Tree:
    seen = start.roles.frozen.get(_SERVER)
    carry = update.begin(start)
    if seen is None:  # shapes are asked for before there is a memory
      return carry
    return carry | {_OPTIMIZER: seen[INNER]}

  def finish(carry, start: Start):
    message, personal = update.finish(carry, start)
    state = {_STATE: carry[_OPTIMIZER]}
    extras = message.extras | {INNER: state}
    return message._replace(extras=extras), personal

  def init(key, roles: Roles) -> Tree:
    own = server.init(key, roles)
    return {'own': own, INNER: _fresh(algorithm, roles)}

  def sent(before, message: Message, weight, sender: Sender) -> Message:
    return send(server, before, message, weight, sender)

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    rest = {k: x for k, x in received.extras.items() if k != INNER}
    state = merged(memory[INNER], received)
    plain = received._replace(extras=rest)
    roles, own, measured = server.step(roles, memory['own'], plain, context)
    return roles, {'own': own, INNER: state}, measured

  def broadcast(memory: Tree) -> dict[str, Any]:
    shown = {INNER: memory[INNER]}
    if server.broadcast is not None:
      shown |= server.broadcast(memory['own'])
    return shown

  return algorithm._replace(
    update=ClientUpdate(begin, update.step, finish, update.sums),
    server=Server(init, sent, server.reduction, step, broadcast),
  )
