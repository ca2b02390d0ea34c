"""Schedules: when and where LoRA is active (SAL, arXiv 2312.15926).

A schedule is a pure state machine on the host: a trigger says how many blocks,
an order which ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.types import ActiveSet
from fedms_jax.schedules.orders import Pick, in_order
from fedms_jax.schedules.triggers import Trigger


class Schedule(NamedTuple):
  """When and where LoRA is active.

  init: JSON-able state. observe: (state, score) -> state, once per round,
  one round late. active: (state, round, ids of the whole cohort) -> what is
  active of each of its clients, in their order.
  """

  init: Any
  observe: Callable[[Any, float], Any]
  active: Callable[[Any, int, Sequence[int]], list[ActiveSet]]


def budget(budgets: Sequence[int], client: int, seed: int) -> int:
  """The depth budget of a client: a pure, even draw from `budgets`."""
  return budgets[
    int(np.random.default_rng([seed, 0xB5D, client]).integers(len(budgets)))
  ]


def schedule(
  trigger: Trigger,
  where: Pick | Sequence[int],
  *,
  budgets: Sequence[int] = (),
  seed: int = 0,
) -> Schedule:
  """`depth_k(t) = min(progress(t), budget_k)` blocks. where: picks them, or
  their fixed order."""
  pick = where if callable(where) else in_order(where)

  def active(state, t, clients):
    depth, clients = trigger.progress(state, t), [int(i) for i in clients]
    depths = [depth] * len(clients)
    if budgets:
      depths = [min(depth, budget(budgets, i, seed)) for i in clients]
    return pick(depths, t, clients)

  return Schedule(trigger.init, trigger.observe, active)
