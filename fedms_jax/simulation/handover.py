"""What one stage hands over to the next: rounds, depth, the state of its queue;
and the plans that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedms_jax.core import activation
from fedms_jax.core.types import ActiveSet, Plan
from fedms_jax.schedules import Schedule
from fedms_jax.simulation.state import Handover, Stage, StageState


def rounds(stages: Sequence[Stage], state: StageState) -> int:
  """How many rounds the stage of a state has at most."""
  return _rounds(stages, state.stage, state.done)


def _rounds(stages: Sequence[Stage], index: int, done: Sequence[int]) -> int:
  """Those of a stage, and what open ones before it have left of theirs."""
  before = zip(stages[:index], done, strict=True)
  left = sum(stage.rounds - count for stage, count in before if stage.open)
  return stages[index].rounds + left


def of(
  simulation,
  index: int,
  active: ActiveSet | None,
  importance: Callable[[], list[float]],
  done: Sequence[int],
  trigger: Any = None,
) -> Handover:
  """What the schedule of a stage may know when it begins. done: rounds of each
  stage before. trigger: see `Handover`."""
  left = _rounds(simulation.stages, index, done)
  rows = simulation.score_rows
  return Handover(active, importance, rows, left, sum(done), trigger)


def schedule(simulation, state: StageState) -> Schedule:
  """The schedule of the stage of a state."""
  importance = state.importance or []
  stage = simulation.stages[state.stage]
  return stage.schedule(
    of(simulation, state.stage, state.inherited, lambda: importance, state.done)
  )


def plans(
  simulation,
  state: StageState,
  number: int,
  ids: Any,
  found: Sequence[ActiveSet] | None = None,
) -> tuple[ActiveSet, list[Plan]]:
  """(blocks ever active, the plans of clients [K] in a round). found: what is
  active of each; None: what the schedule says without asking them."""
  algorithm = simulation.stages[state.stage].algorithm
  if found is None:
    made = schedule(simulation, state)
    found = made.active(state.progress, number, ids)
  ever = tuple(map(any, zip(state.ever, *found, strict=True)))
  boundary = activation.boundary(ever)
  variant = algorithm.variant or (lambda number, client: None)
  return ever, [
    Plan(active, boundary, variant(number, int(i)))
    for active, i in zip(found, ids, strict=True)
  ]
