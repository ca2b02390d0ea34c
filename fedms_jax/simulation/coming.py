"""What will run when a stage has ended as it is now: the evaluation, or the
first round of the next stage. Shapes alone, to compile for."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax.core import activation, reduction, tree
from fedms_jax.core.compile import Program
from fedms_jax.core.types import Plan
from fedms_jax.simulation import cohorts, evaluation, handover, live
from fedms_jax.simulation.cohorts import Cohort
from fedms_jax.simulation.needs import Scene
from fedms_jax.simulation.planner import Execution
from fedms_jax.simulation.readers import Readers, by_length
from fedms_jax.simulation.state import StageState

_NEAR = 4  # a stage is near its end in the last of so many parts of its rounds


def near(rounds: int, left: int) -> bool:
  """Whether a stage of so many rounds, with so many left, is near its end."""
  return left <= -(-rounds // _NEAR)


def foresee(simulation, ahead, state: StageState, at_once=False) -> None:
  """Begins to compile what comes after the stage of a state; at once: returns
  when what evaluates it is there. ahead: an `Ahead`."""
  key = state.stage, state.last
  if state.stage + 1 < len(simulation.stages):
    ahead.open(key, functools.partial(following, simulation, state))
  elif simulation.final is not None:
    compiled = ahead.evaluated if at_once else ahead.evaluate
    compiled(key, functools.partial(evaluated, simulation, state))


class Opening(NamedTuple):
  """The first round of a stage: its shapes, the plan of all of its clients, how
  it is executed (None: that is to be measured), whether they are validated, and
  what derives its columns."""

  scene: Scene
  plan: Plan
  how: Execution | None
  scored: bool
  deriving: list[Program]


def evaluated(simulation, state: StageState) -> Iterator[Program]:
  """The programs of `evaluation.evaluate` by `Simulation.final`, once each;
  none of those that are not known before."""
  data, scope = simulation.federation, simulation.final
  seed = simulation.options.seed
  ids = evaluation.some(data.test.num_clients, scope.clients, seed)
  readers = evaluation.readers(state, scope, ids, seed)
  _, groups = evaluation.grouped(simulation, state, data.pooled)
  wanted = dict.fromkeys([(min(scope.width, len(readers)), groups[0].shape)])
  new = np.arange(data.unseen.num_clients)
  for part, chosen in ((data.test, ids), (data.unseen, new)):
    rows, width = (
      evaluation.rows_of(part, chosen),
      min(scope.width, len(chosen)),
    )
    # Which of them are another process's does not matter: it takes one device.
    for _, most in (
      by_length(np.arange(len(rows)), rows, width) if width else ()
    ):
      wanted[width, (width, most)] = None
  among = Readers(simulation, state, scope, None, len(ids))
  for width, shape in wanted:
    program = among.program(width, shape)
    if program is not None:
      yield program


def following(simulation, state: StageState) -> Opening | None:
  """The opening of the stage after that of a state, if this one ends with the
  blocks of now; None: it is not known before."""
  index = state.stage + 1
  stage = simulation.stages[index]
  # What a stage reads may itself come of the one before.
  given = stage.guard, stage.arrivals, stage.view, stage.fresh
  if any(x is not None for x in given):
    return None
  key = jax.eval_shape(lambda: jax.random.key(0))
  roles = jax.eval_shape(stage.algorithm.begin, key, tree.shapes(state.roles))
  past = handover.past(simulation, state)
  roles, memory, channel = reduction.begin_shapes(stage.algorithm, roles)
  rounds = handover.rounds(simulation.stages, state)
  then = state._replace(
    stage=index,
    round=0,
    roles=roles,
    memory=memory,
    channel=channel,
    ever=handover.ever(simulation.stages, index, past, state),
    inherited=state.last,
    done=(*state.done, rounds),
    arrivals=live.begin(simulation, index, state),
  )
  trigger = handover.schedule(simulation, state).told(state.progress)
  seen = handover.of(
    simulation, index, state.last, _unmeasured(state), then.done, trigger
  )
  return opening(simulation, then._replace(progress=stage.schedule(seen).init))


def _unmeasured(state: StageState):
  """The blocks' importance where it is known; nothing is measured for it."""

  def importance():
    if state.importance is None:
      raise LookupError('the importance of blocks is not measured yet')
    return state.importance

  return importance


def opening(simulation, state: StageState) -> Opening | None:
  """The next round of a state, whose roles, memory and channel may be shapes,
  as the first one that this process runs of its stage; None: it is not known
  before."""
  stage, options = simulation.stages[state.stage], simulation.local(state.stage)
  schedule = handover.schedule(simulation, state)
  how, wire = simulation.planner.given(), stage.algorithm.channel.wire
  known = (how is None or how.mode != 'vmap') and simulation.place.mesh is None
  known &= wire.open is None and wire.receive is None
  known &= stage.guard is None and not live.is_live(stage)
  known &= schedule.by_scores is None and schedule.planned is None
  if not known:
    return None
  sample, _ = simulation.sampler(state.stage)
  cohort = sample(state.arrivals, state.round)
  ever, plans = handover.plans(simulation, state, state.round, cohort.ids)
  if len(set(plans)) != 1:
    return None
  algorithm, roles = stage.algorithm, tree.shapes(state.roles)
  whole = Plan((True,) * len(ever), activation.boundary(ever))
  rows, tables = _read(cohort), simulation.tables
  table = tables.foreseen(algorithm, roles, rows, whole)
  if table is None:
    return None
  clients = int((~cohort.lost).sum())
  scene = Scene(
    algorithm, roles, table, cohort, clients, state.channel, options.rates
  )
  rounds = handover.rounds(simulation.stages, state)
  scored = cohorts.validated(schedule, simulation.options, state.round, rounds)
  deriving = tables.ahead(algorithm, roles, None, whole)
  return Opening(scene.shapes(), plans[0], how, scored, deriving)


def _read(cohort: Cohort) -> np.ndarray:
  """The rows that a round reads."""
  parts: list[Any] = [cohort.rows.ravel(), cohort.validation.ravel()]
  if cohort.fresh is not None:
    parts.append(cohort.fresh.ravel())
  return np.concatenate(parts)
