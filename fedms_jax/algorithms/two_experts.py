"""Experts: several models of one base, each with LoRA and a head of its own.

A client has them in its roles as {'blocks': LoRA [L, ...], 'head': ...}. All
start as one frozen expert, 'start', and none moves below the plan's boundary,
so that one frozen prefix, a derived column, serves them all.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import joined, tree
from fedms_jax.core.activation import Stack, at_rest
from fedms_jax.core.contract import Algorithm, ClientUpdate, Prediction
from fedms_jax.core.types import Batch, Passes, Plan, Roles, Tree


def features(setting: Setting, frozen, stack: Stack, batch: Batch, plan: Plan):
  """Features [B, D] (or [B, T, D]) of the expert whose LoRA is `stack`."""
  backbone, x = setting.backbone, batch['prefix']
  return adapted.features(
    backbone, frozen['base'], [stack], x, batch, plan.boundary
  )


def logits(setting: Setting, frozen, expert: Tree, batch: Batch, plan: Plan):
  """Logits of an expert in the form of `client.join` or `client.rest`."""
  x = features(setting, frozen, expert['blocks'], batch, plan)
  return adapted.logits(setting.backbone, frozen['base'], expert['head'], x)


def pair(
  setting: Setting,
  name: str,
  update: ClientUpdate,
  *,
  extra: Tree | None = None,
  adapter: Tree | None = None,
) -> Algorithm:
  """A shared expert, and an own one of each client; users get their own.

  update: trains both. extra: of the personal tree, besides the own expert;
  floats or arrays. adapter: see `adapted.fresh`. Predicts 'pretrained',
  'global' and 'local'.
  """

  def begin(key, before: Roles) -> Roles:
    whole = adapted.fresh(setting, key, before, adapter)
    frozen = {'base': before.frozen['base'], 'start': whole}
    more = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), extra or {})
    return Roles(frozen, whole, whole | more)

  own = adapted.one_model(
    setting,
    name,
    begin,
    lambda roles: roles.personal,
    served='local',
    server=adapted.server(setting, residual=True),
  )

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    whole = joined.rest(roles.shared, setting.backbone.blocks)
    shared = logits(setting, roles.frozen, whole, batch, plan)
    found = own.predict(roles, batch, plan)
    return Prediction(found.logits | {'global': shared}, {})

  def models(roles: Roles) -> dict[str, Tree]:
    return own.models(roles) | {'global': roles.shared}

  passes = Passes(trained=2, frozen=0)
  return own._replace(
    update=update, predict=predict, passes=passes, models=models
  )


def constant(expert: Tree) -> Tree:
  """An expert in the form of `client.join`, without a gradient."""

  def held(value):
    if not isinstance(value, Stack):
      return jax.lax.stop_gradient(value)
    return value._replace(part=jax.lax.stop_gradient(value.part))

  return {key: held(value) for key, value in expert.items()}


def squared_distance(expert: Tree, anchor: Tree):
  """||expert - anchor||^2 over what trains of the expert; float32 scalar.

  expert: in the form of `client.join`. anchor: a whole expert.
  """
  moved, fixed = {}, {}
  for key, other in anchor.items():
    value = expert[key]
    if isinstance(value, Stack):
      other = tree.rows(other, tree.indices(value.active))
      value = value.part
    moved[key], fixed[key] = value, other
  return tree.squared_norm(tree.subtract(moved, fixed))


def blend(weight, own: Stack, other: Stack) -> Stack:
  """The LoRA of rank 2R of the model in between: in every layer it adds
  `weight` times the update of `own` and 1 - `weight` times that of `other`.

  Averaged factors would be another model, since AB is not linear in them.
  weight: a scalar. What trains of `own` decides what trains.
  """

  def beside(path, x, y):
    if path[-1].key == 'a':
      return jnp.concatenate([x, y], axis=-1)
    return jnp.concatenate([weight * x, (1 - weight) * y], axis=-2)

  def joined(x: Tree, y: Tree) -> Tree:
    return jax.tree_util.tree_map_with_path(beside, x, y)

  return combined(joined, own, other)


def combined(joined: Callable, own: Stack, other: Stack) -> Stack:
  """What `joined` makes of the trees of two stacks; what trains of `own`
  decides what trains."""
  full = joined(own.full, other.full)
  if own.part is None:
    return at_rest(full, len(own.active))
  part = other.part
  if other.active != own.active:
    part = tree.rows(other.full, tree.indices(own.active))
  return Stack(full, joined(own.part, part), own.active)
