"""SCAFFOLD (arXiv 1910.06378): control variates against client drift.

Every client keeps c_k, its estimate of its own gradient, the server c, that
of everybody's; the parts that train are LoRA and head. A local step follows
g + c - c_k. Then, by option II of the paper,

  c_k <- c_k - c + (x - y_k) / (steps * learning rate),

which is, for plain SGD, the mean of the gradients g on the client's path. We
take that mean itself, so that the rule holds for any local optimizer; it then
acts on g + c - c_k. The server moves c by |S| / N times the mean change over
the cohort S, weighted as the models are (equal weights in the paper).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import adapted, fedms
from fedms_jax.algorithms.adapted import Setting
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
from fedms_jax.core.types import ActiveSet, Plan, Roles, Tree
from fedms_jax.server.averaged import divide, tail


def scaffold(
  setting: Setting, population: int, *, adapter: Tree | None = None
) -> Algorithm:
  """SCAFFOLD on LoRA and head. population: N, clients that may be sampled.

  c is in the server's memory, and clients see it as frozen['server']; c_k is
  personal. A server optimizer acts on the model alone.
  """
  optimizer = corrected(setting.optimizer)
  plain = fedms.global_stage(
    setting._replace(optimizer=optimizer), adapter=adapter
  )
  server = adapted.server(setting, residual=True)
  return controlled(plain, server, population)._replace(name='scaffold')


def controlled(plain: Algorithm, server: Server, population: int) -> Algorithm:
  """An algorithm of one shared model, with controls. plain: without personal
  trees, its optimizer is one of `corrected`. server: of the model."""

  def begin(key, before: Roles) -> Roles:
    roles = plain.begin(key, before)
    zeros = jax.tree.map(jnp.zeros_like, roles.shared)
    return roles._replace(personal=zeros)

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    """Model and controls go both ways."""
    del cohort
    up, down = (
      tree.nbytes_of(shapes.shared, plain.masks(Plan(active, 0))[0])
      for active in (plan.active, ever)
    )
    return 2.0 * up, 2.0 * down

  return plain._replace(
    begin=begin,
    update=_controlled(plain.update),
    server=_server(server, population),
    traffic=traffic,
  )


class Corrected(NamedTuple):
  """State of `corrected`: of the optimizer; c - c_k; sum of gradients; how
  many."""

  inner: Any
  correction: Tree
  total: Tree
  steps: Any


def corrected(optimizer) -> optax.GradientTransformation:
  """The optimizer on gradients plus `Corrected.correction`, 0 at first."""

  optimizer = optax.with_extra_args_support(optimizer)

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Corrected(optimizer.init(params), zeros, zeros, jnp.float32(0))

  def update(updates, state, params=None, **extra):
    turned = tree.add(updates, state.correction)
    total = tree.add(state.total, updates)
    moves, inner = optimizer.update(turned, state.inner, params, **extra)
    return moves, Corrected(inner, state.correction, total, state.steps + 1)

  return optax.GradientTransformationExtraArgs(init, update)


def _controlled(update: ClientUpdate) -> ClientUpdate:
  """An update of the model by `corrected`, with controls around it."""

  def model(start: Start) -> Start:
    return start.at(start.roles._replace(personal={}))

  def controls(start: Start) -> tuple[Tree, Tree]:
    """c and c_k of what trains."""
    both = (start.roles.frozen['server'], start.roles.personal)
    c, own = (tree.narrow(x, start.plan.active) for x in both)
    return c, own

  def begin(start: Start):
    carry = update.begin(model(start))
    correction = {'shared': tree.subtract(*controls(start)), 'personal': {}}
    state = carry['optimizer']._replace(correction=correction)
    return carry | {'optimizer': state}

  def step(carry, start: Start, batch, key):
    return update.step(carry, model(start), batch, key)

  def finish(carry, start: Start):
    message, _ = update.finish(carry, model(start))
    state: Corrected = carry['optimizer']
    mean = tree.scale(state.total['shared'], 1 / jnp.maximum(state.steps, 1.0))
    c, own = controls(start)
    new = tree.where(state.steps > 0, mean, own)
    personal = tree.widen(start.roles.personal, new, start.plan.active)
    # As the difference of c moved as c_k has, which is how c is to move.
    change = tree.subtract(tree.add(c, tree.subtract(new, own)), c)
    return message._replace(extras={'controls': change}), personal

  return ClientUpdate(begin, step, finish, update.sums)


def _server(inner: Server, population: int) -> Server:
  """`inner` on the model; the mean change of the controls moves c, in each
  block by the share of the population that held it."""

  def init(key, roles: Roles) -> Tree:
    zeros = jax.tree.map(jnp.zeros_like, roles.shared)
    return {'model': inner.init(key, roles), 'controls': zeros}

  def send(before, message: Message, weight, sender: Sender) -> Message:
    model = message._replace(extras={})
    changes = tree.scale(message.extras['controls'], weight)
    one = (weight > 0).astype(jnp.float32)
    counts = jax.tree.map(lambda c: jnp.full_like(c, one), message.cover)
    found = inner.send(before, model, weight, sender)
    more = {'controls': changes, 'counts': counts}
    return found._replace(extras=found.extras | more)

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    roles, model, measured = inner.step(
      roles, memory['model'], received, context
    )
    extras = received.extras
    means = divide(extras['controls'], received.cover)

    def moved(c: Tree, change: Tree, count) -> Tree:
      share = count / population
      return jax.tree.map(lambda c, x: c + x * tail(share, x), c, change)

    controls = {
      key: moved(c, means[key], extras['counts'][key])
      for key, c in memory['controls'].items()
    }
    return roles, {'model': model, 'controls': controls}, measured

  def broadcast(memory: Tree) -> Tree:
    return memory['controls']

  return Server(init, send, inner.reduction, step, broadcast)
