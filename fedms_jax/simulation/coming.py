"""What will run when a stage has ended as it is now: the evaluation, or the
first round of the next stage. Shapes alone, to compile for.

`Simulation.final` is how the last state will be evaluated, `Simulation.after`
finds the opening of another simulation, which goes on from there; None: nobody
has said.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np

from fedms_jax.core import activation, reduction, tree
from fedms_jax.core.compile import Program
from fedms_jax.core.types import Plan, Roles
from fedms_jax.simulation import cohorts, evaluation, handover, live
from fedms_jax.simulation.ahead import Ahead, Opening
from fedms_jax.simulation.needs import Scene
from fedms_jax.simulation.readers import Readers, by_length
from fedms_jax.simulation.state import StageState

_NEAR = 4  # a stage is near its end in the last of so many parts of its rounds


def begin(simulation, state: StageState) -> Ahead:
  """What compiles for a run from a state on, and has begun to."""
  simulation.tables.settle(state.roles)
  ahead = Ahead(simulation.planner, simulation.tables)
  ahead.open(None, functools.partial(opening, simulation, state))
  return ahead


def near(rounds: int, number: int) -> bool:
  """Whether a stage of so many rounds is near its end in one of them."""
  return rounds - number <= -(-rounds // _NEAR)


def foresee(
  simulation, ahead: Ahead, state: StageState, at_once: bool = False
) -> None:
  """Begins to compile what comes after the stage of a state; at once: returns
  when what evaluates it is there."""
  key = state.stage, state.last
  if state.stage + 1 < len(simulation.stages):
    ahead.open(key, functools.partial(following, simulation, state))
  elif simulation.after is not None:
    ahead.open(key, simulation.after)
  elif simulation.final is not None:
    compiled = ahead.evaluated if at_once else ahead.evaluate
    compiled(key, functools.partial(evaluated, simulation, state))


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
    if not len(chosen):
      continue
    rows = evaluation.rows_of(part, chosen)
    width = min(scope.width, len(rows))
    for _, most in by_length(np.arange(len(rows)), rows, width):
      wanted[width, (width, most)] = None
  among = Readers(simulation, state, scope, None, len(ids))
  for width, shape in wanted:
    program = among.program(width, shape)
    if program is not None:
      yield program


def following(simulation, state: StageState) -> Opening | None:
  """The opening of the stage after that of a state, if this one ends with the
  blocks of now; None: it is not known before."""
  rounds = handover.rounds(simulation.stages, state)
  ended = state._replace(round=rounds)
  return entering(simulation, state.stage + 1, state.roles, ended)


def entering(
  simulation, index: int, roles: Roles, before: StageState | None = None
) -> Opening | None:
  """The opening of a stage that begins with roles, arrays or shapes; None: it
  is not known before. before: the last state of the stage before it."""
  stage = simulation.stages[index]
  # What a stage reads may itself come of the one before.
  given = stage.guard, stage.arrivals, stage.view, stage.fresh
  if any(x is not None for x in given):
    return None
  key = jax.eval_shape(lambda: jax.random.key(0))
  roles = jax.eval_shape(stage.algorithm.begin, key, tree.shapes(roles))
  begun = reduction.begin_shapes(stage.algorithm, roles)
  return opening(
    simulation,
    handover.entered(simulation, index, begun, before, _unmeasured),
  )


def _unmeasured():
  raise LookupError('the importance of blocks is not measured yet')


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
  rows = cohorts.read(cohort, np.flatnonzero(~cohort.lost))
  tables = simulation.tables
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
