"""ONE client: local training as a pure function, for every algorithm.

The number of clients does not occur in this file; `rounds.py` maps over them.
What trains is the active part of the shared and the personal tree; what does
not train is left out of the gradient and of the optimizer (AdamW would move a
parameter under a zero gradient).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedms_jax.core import columns, metrics, tree
from fedms_jax.core.activation import Stack, at_rest
from fedms_jax.core.types import (
  Algorithm,
  ClientResult,
  ClientUpdate,
  Mask,
  Plan,
  Roles,
  Tree,
)


def everywhere(plan: Plan) -> tuple[Mask, Mask]:
  """The masks of an algorithm that trains all of its active blocks."""
  return plan.active, plan.active


def join(full: Tree, part: Tree, mask: Mask, blocks: int) -> Tree:
  """A role tree for an objective: stacked keys as `Stack`, others trained."""

  def joined(key, value):
    if not tree.is_stacked(key):
      return part.get(key, value)
    if key not in part:
      return at_rest(value, blocks)
    held = tree.trained(mask, key)
    return Stack(value, part[key], (True,) * blocks if held is True else held)

  return {key: joined(key, value) for key, value in full.items()}


def rest(full: Tree, blocks: int) -> Tree:
  """A role tree of which nothing trains, in the form of `join`."""
  return {
    key: at_rest(value, blocks) if tree.is_stacked(key) else value
    for key, value in full.items()
  }


def sgd(
  objective: Callable[..., tuple[Any, dict[str, Any]]],
  optimizer: optax.GradientTransformation,
  masks: Callable,
  sums: tuple[str, ...] = ('loss', 'score'),
) -> ClientUpdate:
  """Local SGD on an objective.

  Args:
    objective: (roles, batch, key, plan) -> (loss [], sums), where the shared
      and personal trees come from `join`.
    optimizer: acts on {'shared': part, 'personal': part}; fresh each round,
      so newly active blocks start without moments.
    masks: see `Algorithm.masks`.
    sums: names of the metrics that the objective gives.
  """

  def begin(roles: Roles, plan: Plan):
    shared, personal = masks(plan)
    train = {
      'shared': tree.narrow(roles.shared, shared),
      'personal': tree.narrow(roles.personal, personal),
    }
    return {'train': train, 'optimizer': optimizer.init(train)}

  def step(carry, roles: Roles, batch, key, plan: Plan):
    shared, personal = masks(plan)
    blocks = len(plan.active)

    def loss(train):
      joined = Roles(
        roles.frozen,
        join(roles.shared, train['shared'], shared, blocks),
        join(roles.personal, train['personal'], personal, blocks),
      )
      return objective(joined, batch, key, plan)

    gradient, sums = jax.grad(loss, has_aux=True)(carry['train'])
    updates, state = optimizer.update(
      gradient, carry['optimizer'], carry['train']
    )
    train = optax.apply_updates(carry['train'], updates)
    return {'train': train, 'optimizer': state}, sums

  def finish(carry, roles: Roles, plan: Plan):
    train = carry['train']
    personal = tree.widen(roles.personal, train['personal'], masks(plan)[1])
    return train['shared'], personal

  return ClientUpdate(begin, step, finish, sums)


def run(
  algorithm: Algorithm,
  roles: Roles,
  table: Tree,
  rows,
  key,
  plan: Plan,
  steps=None,
) -> ClientResult:
  """Local training over row numbers [S, B]; a padded step keeps its carry.

  steps: how many of the S are run, a number that may be known at run time
  only; None: all. So S may be generous, and compilations few.
  """
  update, rows = algorithm.update, jnp.asarray(rows)
  first = (update.begin(roles, plan), zero_sums(algorithm))
  total = jnp.sum(jnp.any(rows >= 0, axis=1))

  def body(number, carry):
    new = one_step(
      algorithm, carry, roles, table, rows[number], key, number, total, plan
    )
    return tree.where(jnp.any(rows[number] >= 0), new, carry)

  count = rows.shape[0] if steps is None else steps
  state, sums = jax.lax.fori_loop(0, count, body, first)
  shared, personal = update.finish(state, roles, plan)
  return ClientResult(shared, personal, sums)


def one_step(
  algorithm, carry, roles, table, rows, key, number, total, plan: Plan
):
  """One local step on row numbers [B]: (state, sums) -> (state, sums).

  number, total: of this step, from 0, and how many the client takes.
  """
  state, sums = carry
  batch = columns.take(table, rows)
  shared = Roles(roles.frozen, roles.shared, None)
  batch = columns.complete(algorithm, shared, batch, plan)
  batch['progress'] = jnp.float32(number) / jnp.maximum(total, 1)
  key = jax.random.fold_in(key, number)
  state, new = algorithm.update.step(state, roles, batch, key, plan)
  return state, {name: sums[name] + new[name] for name in sums}


def zero_sums(algorithm: Algorithm) -> metrics.Sums:
  """Zeros for every metric that a step reports."""
  return {name: jnp.zeros(2, jnp.float32) for name in algorithm.update.sums}
