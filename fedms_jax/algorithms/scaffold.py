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

from fedms_jax.algorithms import fedms
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import tree
from fedms_jax.core.types import (
  Aggregator,
  Algorithm,
  ClientUpdate,
  Mask,
  Plan,
  Roles,
  Tree,
)
from fedms_jax.server import averaged

_CONTROL = 'control_'
_COUNT = 'count_'


def scaffold(
  setting: Setting, population: int, *, adapter: Tree | None = None
) -> Algorithm:
  """SCAFFOLD on LoRA and head. population: N, clients that may be sampled.

  c is in shared, under the model's keys with `control_` before them, and c_k
  in personal. A server optimizer acts on the model alone.
  """
  optimizer = corrected(setting.optimizer)
  plain = fedms.global_stage(
    setting._replace(optimizer=optimizer), adapter=adapter
  )

  def begin(key, before: Roles) -> Roles:
    roles = plain.begin(key, before)
    zeros = _controls(jax.tree.map(jnp.zeros_like, roles.shared))
    return roles._replace(shared=roles.shared | zeros, personal=zeros)

  def fold(roles: Roles, values, weights, key) -> Roles:
    del key
    moved = averaged.divide(_only(values), _only(weights))
    for name, change in moved.items():
      share = values[name.replace(_CONTROL, _COUNT)] / population
      moved[name] = jax.tree.map(
        lambda x, s=share: x * s.reshape(s.shape + (1,) * (x.ndim - s.ndim)),
        change,
      )
    controls = tree.add(_only(roles.shared), moved)
    return roles._replace(shared=roles.shared | controls)

  return plain._replace(
    name='scaffold',
    begin=begin,
    update=_controlled(plain.update),
    aggregator=_aggregator(plain.aggregator),
    fold=fold,
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

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Corrected(optimizer.init(params), zeros, zeros, jnp.float32(0))

  def update(gradient, state: Corrected, params):
    turned = tree.add(gradient, state.correction)
    updates, inner = optimizer.update(turned, state.inner, params)
    total = tree.add(state.total, gradient)
    return updates, Corrected(inner, state.correction, total, state.steps + 1)

  return optax.GradientTransformation(init, update)


def _controlled(update: ClientUpdate) -> ClientUpdate:
  """An update of the model by `corrected`, with controls around it."""

  def model(roles: Roles) -> Roles:
    return roles._replace(shared=_model(roles.shared), personal={})

  def begin(roles: Roles, plan: Plan):
    carry = update.begin(model(roles), plan)
    c, own = (_narrowed(x, plan.active) for x in (roles.shared, roles.personal))
    correction = {'shared': tree.subtract(c, own), 'personal': {}}
    state = carry['optimizer']._replace(correction=correction)
    return carry | {'optimizer': state}

  def step(carry, roles: Roles, batch, key, plan: Plan):
    return update.step(carry, model(roles), batch, key, plan)

  def finish(carry, roles: Roles, plan: Plan):
    shared, _ = update.finish(carry, model(roles), plan)
    state: Corrected = carry['optimizer']
    mean = tree.scale(state.total['shared'], 1 / jnp.maximum(state.steps, 1.0))
    own = _narrowed(roles.personal, plan.active)
    new = tree.where(state.steps > 0, mean, own)
    personal = tree.widen(roles.personal, _controls(new), plan.active)
    c = _narrowed(roles.shared, plan.active)
    sent = tree.add(c, tree.subtract(new, own))  # c, moved as c_k has
    return shared | _controls(sent), personal

  return ClientUpdate(begin, step, finish, update.sums)


def _aggregator(inner: Aggregator) -> Aggregator:
  """`inner` on the model; the controls' changes are summed for `fold`, with
  the number of clients."""

  def contribute(before, after, weight):
    model = inner.contribute(_model(before), _model(after), weight)
    changes = tree.subtract(_only(after), _only(before))
    one = (weight > 0).astype(jnp.float32)
    counts = {
      f'{_COUNT}{key}': jnp.full(_rows(value), one)
      if tree.is_stacked(key)
      else one
      for key, value in _model(before).items()
    }
    return model | tree.scale(changes, weight) | counts

  def merge(before, total, weights):
    return before | inner.merge(_model(before), _model(total), weights)

  def measure(before, total, weights):
    return inner.measure(_model(before), _model(total), _model(weights))

  return Aggregator(contribute, 'sum', merge, measure)


def _rows(stacked: Tree) -> int:
  return jax.tree.leaves(stacked)[0].shape[0]


def _model(role: Tree) -> Tree:
  """What is neither a control nor a count."""
  own = (_CONTROL, _COUNT)
  return {k: v for k, v in role.items() if not k.startswith(own)}


def _only(role: Tree) -> Tree:
  """The controls."""
  return {k: v for k, v in role.items() if k.startswith(_CONTROL)}


def _controls(model: Tree) -> Tree:
  """A tree like the model's under the names of its controls."""
  return {f'{_CONTROL}{k}': v for k, v in model.items()}


def _narrowed(role: Tree, active: Mask) -> Tree:
  """The controls of what trains, under the model's keys."""
  part = tree.narrow(_only(role), active)
  return {k.removeprefix(_CONTROL): v for k, v in part.items()}
