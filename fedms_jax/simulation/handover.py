"""What one stage hands over to the next: rounds, depth, the state of its queue,
where its series stands; and the plans that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedms_jax.cluster.placement import Placement
from fedms_jax.core import activation, compile, reduction
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import ActiveSet, Plan, Roles, Tree
from fedms_jax.schedules import Schedule
from fedms_jax.simulation import live, stopping
from fedms_jax.simulation.state import Handover, Past, Stage, StageState
from fedms_jax.systems.ledger import Entry


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
  rows, sizes = simulation.score_rows, simulation.federation.train.sizes()
  return Handover(active, importance, rows, left, sum(done), trigger, sizes)


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
  versions: Any = None,
) -> tuple[ActiveSet, list[Plan]]:
  """(blocks ever active, the plans of clients [K] in a round). found: what is
  active of each; None: what the schedule says without asking them. versions:
  the rounds in which they began; None: in this one."""
  algorithm = simulation.stages[state.stage].algorithm
  if found is None:
    made = schedule(simulation, state)
    found = made.active(state.progress, number, ids)
  ever = tuple(map(any, zip(state.ever, *found, strict=True)))
  boundary = activation.boundary(ever)
  variant = algorithm.variant or (lambda number, client: None)
  began = [number] * len(ids) if versions is None else map(int, versions)
  return ever, [
    Plan(active, boundary, variant(v, int(i)))
    for active, i, v in zip(found, ids, began, strict=True)
  ]


def past(simulation, before: StageState | None) -> dict[str, Past]:
  """Where all series of stages stand when the stage of a state has ended."""
  if before is None:
    return {}
  series = simulation.stages[before.stage].series
  memory = before.memory if series else ()
  return before.past | {series: Past(before.clock, memory)}


def ever(
  stages: Sequence[Stage],
  index: int,
  past: dict[str, Past],
  before: StageState | None,
) -> ActiveSet:
  """The blocks that may have moved since the frozen values of a stage were
  set: none, or those of its series, which goes on with them. past: when the
  stage `before` has ended."""
  stage = stages[index]
  blocks = stage.algorithm.backbone.blocks
  if before is None or not stage.series or stage.series not in past:
    return (False,) * blocks
  if stages[before.stage].series == stage.series:
    return before.ever
  return (True,) * blocks  # nobody has kept which


@compile.jit(static=(0,), light=True)
def begun(algorithm: Algorithm, key, roles: Roles) -> Roles:
  """The roles with which an algorithm's stage begins."""
  return algorithm.begin(key, roles)


def server(
  stage: Stage, roles: Roles, past: dict[str, Past], seed: int
) -> tuple[Roles, Tree, Tree]:
  """(roles, the server's memory, the channel's) that a stage begins with.
  roles: as its algorithm makes them."""
  roles, memory, channel = reduction.begin(stage.algorithm, roles, seed)
  if stage.series and stage.series in past:
    memory = past[stage.series].memory
    roles = reduction.broadcast(stage.algorithm, roles, memory)
  return roles, memory, channel


def entered(
  simulation,
  index: int,
  begun: tuple[Roles, Tree, Tree],
  before: StageState | None,
  measure: Callable[[], list[float]],
) -> StageState:
  """The state before the first round of a stage.

  Args:
    simulation: whose stage it is.
    index: of the stage.
    begun: what `server` gives, or its shapes.
    before: the last state of the stage before.
    measure: gives the importance of the blocks where `before` has none.
  """
  stage, inherited = simulation.stages[index], before and before.last
  measured = [before and before.importance]

  def importance():
    if measured[0] is None:
      measured[0] = measure()
    return measured[0]

  done, trigger = (), None
  if before:
    done = (*before.done, before.round)
    trigger = schedule(simulation, before).told(before.progress)
  made = stage.schedule(
    of(simulation, index, inherited, importance, done, trigger)
  )
  series = past(simulation, before)
  roles, memory, channel = begun
  return StageState(
    stage=index,
    round=0,
    clock=series.get(stage.series, Past(0)).clock,
    roles=roles,
    memory=memory,
    channel=channel,
    progress=made.init,
    arrivals=live.begin(simulation, index, before),
    met=np.zeros(simulation.federation.train.num_clients, bool),
    reports={},
    ever=ever(simulation.stages, index, series, before),
    inherited=inherited,
    last=inherited,
    importance=measured[0],
    ledger=Entry(),
    watch=stopping.begin(),
    done=done,
    spent=before and before.spent,
    past=series,
  )


def on_devices(place: Placement, roles: Roles) -> Roles:
  """Roles where the devices of this process need them."""
  frozen = place.frozen(roles.frozen)
  return Roles(frozen, *place.whole((roles.shared, roles.personal)))


def placed(place: Placement, state: StageState) -> StageState:
  """A state, that a checkpoint may have held, on the devices."""
  memory, channel = place.whole((state.memory, state.channel))
  return state._replace(
    roles=on_devices(place, state.roles),
    memory=memory,
    channel=channel,
    past={
      name: Past(p.clock, place.whole(p.memory))
      for name, p in state.past.items()
    },
    flying={
      version: one._replace(
        shared=place.whole(one.shared), seen=place.whole(one.seen)
      )
      for version, one in state.flying.items()
    },
  )
