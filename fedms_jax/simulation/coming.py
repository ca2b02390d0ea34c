"""What will run when a stage has ended as it is now: the evaluation, or the
first round of the next stage. Shapes alone, to compile for.

`Simulation.final` is how the last state will be evaluated, `Simulation.after`
finds the openings of another simulation, which goes on from there; None: nobody
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
from fedms_jax.simulation.ahead import Ahead, Opening, foreseen
from fedms_jax.simulation.needs import Scene
from fedms_jax.simulation.readers import Readers, by_length
from fedms_jax.simulation.state import StageState

# A stage is near its end in the last of so many parts of its rounds, and in so
# many rounds at least: evaluation takes longest to compile.
_NEAR, _LAST = 4, 10


def begin(simulation, state: StageState) -> Ahead:
  """What compiles for a run from a state on, and has begun to."""
  simulation.tables.settle(state.roles)
  ahead = Ahead(simulation.planner, simulation.tables)
  ahead.open(None, functools.partial(opening, simulation, state))
  return ahead


def near(rounds: int, number: int) -> bool:
  """Whether a stage of so many rounds is near its end in one of them."""
  return rounds - number <= max(_LAST, -(-rounds // _NEAR))


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


def following(simulation, state: StageState) -> Iterator[Opening]:
  """The opening of the stage after that of a state, if this one ends with the
  blocks of now."""
  rounds = handover.rounds(simulation.stages, state)
  ended = state._replace(round=rounds)
  for _, one in _entering(simulation, state.stage + 1, state.roles, ended):
    yield one


def first(simulation) -> Iterator[Opening]:
  """The opening of a run whose `initial` may be shapes so far, then the first
  round of each plan that comes if the score stays as it is."""
  for state, one in _entering(simulation, 0, simulation.initial, None):
    yield one
    left = range(handover.rounds(simulation.stages, state))
    made, client = handover.schedule(simulation, state), one.scene.cohort.ids[0]
    for plan in foreseen(made, state.progress, left, int(client), one.plan):
      yield one._replace(plan=plan, before=[])


def _entering(
  simulation, index: int, roles: Roles, before: StageState | None
) -> Iterator[tuple[StageState, Opening]]:
  """The first state and the opening of a stage that begins with roles, arrays
  or shapes. before: the last state of the stage before it."""
  stage = simulation.stages[index]
  # What a stage reads may itself come of the one before.
  given = stage.guard, stage.arrivals, stage.view, stage.fresh
  if any(x is not None for x in given):
    return
  key = jax.eval_shape(lambda: jax.random.key(0))
  args = stage.algorithm, key, tree.shapes(roles)
  begun = jax.eval_shape(stage.algorithm.begin, *args[1:])
  made = [
    (handover.begun, args),
    (reduction.memory, (stage.algorithm, key, begun)),
  ]
  begun = reduction.begin_shapes(stage.algorithm, begun)
  state = handover.entered(simulation, index, begun, before, _unmeasured)
  for one in opening(simulation, state):
    yield state, one._replace(before=[*made, *one.before])


def _unmeasured():
  raise LookupError('the importance of blocks is not measured yet')


def opening(simulation, state: StageState) -> list[Opening]:
  """The next round of a state, whose roles, memory and channel may be shapes,
  as the first one that this process runs of its stage; none, if it is not
  known before."""
  stage, options = simulation.stages[state.stage], simulation.local(state.stage)
  schedule = handover.schedule(simulation, state)
  how, wire = simulation.planner.given(), stage.algorithm.channel.wire
  known = (how is None or how.mode != 'vmap') and simulation.place.mesh is None
  known &= wire.open is None and wire.receive is None
  known &= stage.guard is None and not live.is_live(stage)
  known &= schedule.by_scores is None and schedule.planned is None
  if not known:
    return []
  sample, _ = simulation.sampler(state.stage)
  cohort = sample(state.arrivals, state.round)
  ever, plans = handover.plans(simulation, state, state.round, cohort.ids)
  if len(set(plans)) != 1:
    return []
  algorithm, roles = stage.algorithm, tree.shapes(state.roles)
  whole = Plan((True,) * len(ever), activation.boundary(ever))
  rows = cohorts.read(cohort, np.flatnonzero(~cohort.lost))
  tables = simulation.tables
  table = tables.foreseen(algorithm, roles, rows, whole)
  if table is None:
    return []
  clients = int((~cohort.lost).sum())
  scene = Scene(
    algorithm, roles, table, cohort, clients, state.channel, options.rates
  )
  rounds = handover.rounds(simulation.stages, state)
  scored = cohorts.validated(schedule, simulation.options, state.round, rounds)
  deriving = tables.ahead(algorithm, roles, None, whole)
  return [Opening(scene.shapes(), plans[0], how, scored, deriving)]
