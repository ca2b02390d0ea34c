"""Who trains what in a round, and who may: counted over the population.

The count follows from the schedule and the clients' numbers, and from nobody's
data, so that a sum may be divided by it before it is known who was drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from fedms_jax.core import activation, seeds, tree
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import ActiveSet, Plan, Public
from fedms_jax.schedules import Schedule
from fedms_jax.simulation import handover, live, public_rows
from fedms_jax.simulation.cohorts import Cohort, Round
from fedms_jax.simulation.state import Guard, Stage, StageState
from fedms_jax.simulation.tangents import active_sets


def begun(
  simulation, state: StageState, schedule: Schedule, store, cohort: Cohort
) -> tuple[StageState, Round]:
  """(the state of a round that begins, the round)."""
  state, plans, public = planned(simulation, state, schedule, store, cohort)
  key, noise = (
    seeds.stream(simulation.options.seed, use, state.stage, cohort.round)
    for use in (Stream.CLIENT, Stream.NOISE)
  )
  return state, Round(
    simulation.stages[state.stage].algorithm,
    state.roles,
    state.memory,
    state.channel,
    cohort,
    plans,
    key,
    state.clock,
    noise,
    public,
    public_rows.draw(simulation, state),
    live.began(simulation, state, cohort),
    simulation.local(state.stage).rates,
  )


def planned(
  simulation, state: StageState, schedule: Schedule, store, cohort: Cohort
) -> tuple[StageState, list[Plan], Public | None]:
  """(the state of a round that begins, its clients' plans, what is public of
  it): the blocks that were ever active and those that are, and what is told of
  clients by it."""
  stage = simulation.stages[state.stage]
  if cohort.timing is None:
    asked, versions = (
      active_sets(simulation, schedule, state, store, cohort),
      None,
    )
  else:
    asked, versions = live.planned(state, cohort), cohort.timing.versions
  ever, found = handover.plans(
    simulation, state, cohort.round, cohort.ids, asked, versions
  )
  sets, public, guard = [plan.active for plan in found], None, stage.guard
  if guard is not None:
    spent = guard.spend(state.spent, cohort.ids, cohort.steps)
    state = state._replace(spent=spent)
    if guard.expected:
      public, more = expected(stage.algorithm, guard, schedule, state,
                              cohort.round)  # fmt: skip
      # What may be moved is what anybody may train, whoever is in the cohort.
      sets += more
      ever = tuple(map(any, zip(ever, *more, strict=True)))
      boundary = activation.boundary(ever)
      found = [plan._replace(boundary=boundary) for plan in found]
  last = max(sets, key=sum, default=state.last)
  if schedule.planned is not None:
    theirs = [plan.active for plan in found]
    progress = schedule.planned(state.progress, cohort.round, theirs)
    state = state._replace(progress=progress)
  return state._replace(ever=ever, last=last), found, public


def score(stage: Stage) -> Callable[[np.ndarray, int], float] | None:
  """See `Guard`."""
  return stage.guard.score if stage.guard else None


def expected(
  algorithm: Algorithm,
  guard: Guard,
  schedule: Schedule,
  state: StageState,
  number: int,
) -> tuple[Public, list[ActiveSet]]:
  """What is public of a round, and the active sets that occur in it.

  Of the clients that are expected to report, as many train a block as hold it
  in the population. number: of the round.
  """
  ids = range(1 if guard.alike else guard.clients)
  sets = schedule.active(state.progress, number, ids)
  variant = algorithm.variant or (lambda number, client: None)
  counts: dict[Plan, int] = {}
  for active, client in zip(sets, ids, strict=True):
    plan = Plan(active, 0, variant(number, client))
    counts[plan] = counts.get(plan, 0) + 1
  holders = {key: _zero(algorithm, key) for key in state.roles.shared}
  for plan, count in counts.items():
    mask = algorithm.masks(plan)[0]
    for key in holders:
      held = np.asarray(tree.trained(mask, key), np.float32)
      holders[key] = holders[key] + held * np.float32(
        guard.expected * count / len(ids)
      )
  public = Public(
    jnp.float32(guard.expected),
    {key: jnp.asarray(value) for key, value in holders.items()},
  )
  return public, list(dict.fromkeys(sets))


def _zero(algorithm: Algorithm, key: str) -> np.ndarray:
  shape = (algorithm.backbone.blocks,) if tree.is_stacked(key) else ()
  return np.zeros(shape, np.float32)
