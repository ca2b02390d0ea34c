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
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Message,
  Moment,
  Start,
)
from fedms_jax.core.joined import join_roles
from fedms_jax.core.types import Batch, Mask, Plan, Roles, Tree


def everywhere(plan: Plan) -> tuple[Mask, Mask]:
  """The masks of an algorithm that trains all of its active blocks."""
  return plan.active, plan.active


def progress(moment: Moment):
  """The share of the client's steps that came before, float32 in [0, 1)."""
  return jnp.float32(moment.step) / jnp.maximum(moment.steps, 1)


def mean_gradient(loss: Callable, train: Tree, batch: Batch, key):
  """The gradient of a loss, and its sums.

  Args:
    loss: (train, batch) -> (loss [], sums).
    train: what trains.
    batch: of the step.
    key: of the step; unused.
  """
  del key
  return jax.grad(lambda train: loss(train, batch), has_aux=True)(train)


def sgd(
  objective: Callable[..., tuple[Any, dict[str, Any]]],
  optimizer: optax.GradientTransformation,
  masks: Callable,
  sums: tuple[str, ...] = ('loss', 'score'),
  prepare: Callable[[Start], Tree] | None = None,
  gradient: Callable = mean_gradient,
) -> ClientUpdate:
  """Local SGD on an objective.

  Args:
    objective: (roles, batch, key, start) -> (loss [], sums), where the shared
      and personal trees come from `join`, and start.roles are those of the
      start of the round.
    optimizer: acts on {'shared': part, 'personal': part}; fresh each round,
      so newly active blocks start without moments (but see `inner_state.py`).
      Extra arguments are `start`, and `masks`, of its plan.
    masks: see `Algorithm.masks`.
    sums: names of the metrics that the objective gives.
    prepare: computed once in a round, for start.prepared; None: nothing.
    gradient: of a batch; see `mean_gradient`.
  """

  optimizer = optax.with_extra_args_support(optimizer)

  def begin(start: Start):
    shared, personal = masks(start.plan)
    train = {
      'shared': tree.narrow(start.roles.shared, shared),
      'personal': tree.narrow(start.roles.personal, personal),
    }
    carry = {'train': train, 'optimizer': optimizer.init(train)}
    return carry | ({'prepared': prepare(start)} if prepare else {})

  def step(carry, start: Start, batch, key):
    held = masks(start.plan)
    if prepare:
      start = start._replace(prepared=carry['prepared'])

    def loss(train, batch):
      return objective(join_roles(start, train, held), batch, key, start)

    slope, sums = gradient(loss, carry['train'], batch, key)
    updates, state = optimizer.update(
      slope, carry['optimizer'], carry['train'], start=start, masks=held
    )
    train = optax.apply_updates(carry['train'], updates)
    return carry | {'train': train, 'optimizer': state}, sums

  def finish(carry, start: Start):
    train, personal = carry['train'], masks(start.plan)[1]
    own = tree.widen(start.roles.personal, train['personal'], personal)
    return Message(train['shared']), own

  return ClientUpdate(begin, step, finish, sums)


def with_fresh(algorithm: Algorithm, start: Start, table: Tree, numbers):
  """The start with the rows of these numbers [F]; None: as it is."""
  if numbers is None:
    return start
  batch = columns.take(table, numbers)
  shared = Roles(start.roles.frozen, start.roles.shared, None)
  batch = columns.complete(algorithm, shared, batch, start.plan)
  return start._replace(fresh=batch | {'number': numbers})


def at_step(start: Start, number) -> Start:
  """The start at the moment of a later step."""
  moment = start.moment
  clock = moment.clock + number - moment.step
  return start._replace(moment=moment._replace(step=number, clock=clock))


def one_step(algorithm: Algorithm, carry, start: Start, table, rows, key):
  """One local step on row numbers [B]: (state, sums) -> (state, sums)."""
  state, sums = carry
  batch = columns.take(table, rows)
  shared = Roles(start.roles.frozen, start.roles.shared, None)
  batch = columns.complete(algorithm, shared, batch, start.plan)
  if start.fresh is not None:
    batch['held'] = jnp.isin(rows, start.fresh['number']) & batch['mask']
  key = jax.random.fold_in(key, start.moment.step)
  state, new = algorithm.update.step(state, start, batch, key)
  return state, {name: sums[name] + new[name] for name in sums}


def zero_sums(algorithm: Algorithm) -> metrics.Sums:
  """Zeros for every metric that a step reports."""
  return {name: jnp.zeros(2, jnp.float32) for name in algorithm.update.sums}
