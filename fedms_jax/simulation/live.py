"""Rounds whose arrivals have a clock, or choose by what was reported: they are
asked when the plan of a round is known, one round after the other.

What a client begins with is fixed then: its plan, keys and rows are those of
the round in which it began, and it is trained when its report is due, from the
model of that round. That is exact, since only the client changes its personal
state, and it is never twice in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from fedms_jax.core import activation, reduction, seeds
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import ActiveSet, Plan
from fedms_jax.data import cohorts as data
from fedms_jax.schedules import Schedule
from fedms_jax.simulation import cohorts
from fedms_jax.simulation.cohorts import Began, Cohort, Sampler
from fedms_jax.simulation.state import Flying, Stage, StageState
from fedms_jax.systems.arrivals import Arrivals, Heard, Tasks
from fedms_jax.systems.ledger import Meter


def check(simulation) -> None:
  """Raises `ValueError` for stages that do not go with their arrivals."""
  stages, roles = simulation.stages, simulation.initial
  if all(stage.arrivals is None for stage in stages):
    return
  for stage in stages:
    algorithm, arrivals = stage.algorithm, stage.arrivals
    roles = jax.eval_shape(algorithm.begin, jax.random.key(0), roles)
    if arrivals is None:
      continue
    if stage.guard is not None and not arrivals.sampled:
      raise ValueError(
        f'stage {stage.name} is private, and its arrivals decide who reports; '
        'allowed: those that the sampler alone draws, as its accounts assume.'
      )
    if not arrivals.late:
      continue
    said = f'stage {stage.name} takes reports of earlier models (`late`)'
    if algorithm.server.reduction == 'stack':
      raise ValueError(
        f'{said}, and its server compares messages with each other, which are '
        'then of different models; allowed: servers that add them up.'
      )
    if reduction.rewrites(algorithm, roles):
      raise ValueError(
        f'{said}, and its server rewrites what is frozen, on which clients in '
        'flight rest; allowed: servers that change what is shared alone.'
      )


def is_live(stage: Stage) -> bool:
  """Whether the arrivals of a stage are asked round by round."""
  return stage.arrivals is not None and stage.arrivals.live


def sampler(
  simulation, index: int, timed: bool = True
) -> tuple[Sampler, Arrivals]:
  """The cohorts of a stage, and who reports in them. timed: False for the
  sampled ones where arrivals are live."""
  stage, options = simulation.stages[index], simulation.local(index)
  seen = cohorts.seen(stage, simulation.federation)
  arrivals = stage.arrivals
  if arrivals is None or (arrivals.live and not timed):
    arrivals = cohorts.usual(options, index, seen.train.num_clients)
  sample = cohorts.sampler(seen, arrivals, options, index, stage.fresh)
  return sample, arrivals


def begin(simulation, index: int, before: StageState | None) -> Any:
  """The state of arrivals with which a stage begins after another one."""
  _, arrivals = sampler(simulation, index)
  if before is None or arrivals.carry is None:
    return arrivals.init
  return arrivals.carry(before.arrivals)


def source(
  simulation,
  state: Callable[[], StageState],
  schedule: Schedule,
  meter: Meter,
  rounds: range,
) -> Iterator[Cohort]:
  """The cohorts of these rounds: prepared ahead, or each when it is asked for.
  state: gives the one before the round, with all reports."""
  stage = simulation.stages[state().stage]
  sample, _ = sampler(simulation, state().stage)
  if not is_live(stage):
    prefetch = simulation.local(state().stage).prefetch
    yield from cohorts.ahead(sample, state().arrivals, rounds, prefetch)
    return
  if schedule.by_scores is not None or schedule.planned is not None:
    raise ValueError(
      f'stage {stage.name} has a clock, or chooses its clients, and its '
      'schedule looks at whole cohorts; allowed: those that plan each client '
      'for itself.'
    )
  for number in rounds:
    yield cohort(simulation, state(), schedule, sample, meter, number)


def cohort(
  simulation,
  state: StageState,
  schedule: Schedule,
  sample: Sampler,
  meter: Meter,
  number: int,
) -> Cohort:
  """The cohort of a round, with what is active of those that begin in it."""
  begun: dict[int, ActiveSet] = {}

  def cost(ids: np.ndarray) -> Tasks:
    sets = schedule.active(state.progress, number, ids.tolist())
    begun.update(zip(ids.tolist(), sets, strict=True))
    ever = _ever(state.ever, begun)
    return tasks(simulation, state, meter, ids, sets, ever, number)

  found = sample(state.arrivals, number, cost)
  arrivals = simulation.stages[state.stage].arrivals
  assert found.timing is not None
  timing = found.timing._replace(
    begun=begun,
    before={version: one.ever for version, one in state.flying.items()},
    heard=arrivals.heard,
  )
  return found._replace(timing=timing)


def tasks(
  simulation,
  state: StageState,
  meter: Meter,
  ids: np.ndarray,
  sets: list[ActiveSet],
  ever: ActiveSet,
  number: int,
) -> Tasks:
  """What clients would spend in a round by the ledger, each under its plan."""
  stage, o = simulation.stages[state.stage], simulation.local(state.stage)
  federation = cohorts.seen(stage, simulation.federation)
  variant = stage.algorithm.variant or (lambda number, client: None)
  boundary = activation.boundary(ever)
  sizes = federation.train.at(number).sizes()[ids]
  steps = data.lengths(sizes, o.batch_size, o.epochs, cohorts.steps(o, number))
  examples = data.examples(sizes, steps, o.batch_size)
  fresh = np.zeros(len(ids))
  if stage.fresh is not None:
    fresh = (stage.fresh(federation, ids, number) >= 0).sum(axis=1)
  entries = [
    meter.group(
      Plan(sets[k], boundary, variant(number, i)),
      ever,
      clients=1,
      newcomers=int(not state.met[i]),
      cohort=len(ids),
      examples=float(examples[k]),
      steps=float(steps[k]),
      derived=0.0,
      scope='run',
      fresh=float(fresh[k]),
    )
    for k, i in enumerate(ids.tolist())
  ]
  there = sizes > 0
  down, flops, up = (
    np.array([getattr(e, name) for e in entries], float) * there
    for name in ('bytes_down', 'client_flops', 'bytes_up')
  )
  return Tasks(down, flops, up, steps)


def planned(state: StageState, cohort: Cohort) -> list[ActiveSet]:
  """What is active of each client of a cohort, as it was when it began."""
  timing = cohort.timing
  assert timing is not None
  return [
    timing.begun[i] if v == cohort.round else state.flying[v].plans[i]
    for i, v in zip(cohort.ids.tolist(), timing.versions.tolist(), strict=True)
  ]


def began(simulation, state: StageState, cohort: Cohort) -> dict[int, Began]:
  """With what clients train that began in earlier rounds."""
  if cohort.timing is None:
    return {}
  out = {}
  for version in np.unique(cohort.timing.versions[~cohort.lost]).tolist():
    if version == cohort.round:
      continue
    then, roles = state.flying[version], state.roles
    seen = {} if then.seen is None else {reduction.SERVER: then.seen}
    roles = roles._replace(shared=then.shared, frozen=roles.frozen | seen)
    key = seeds.stream(
      simulation.options.seed, Stream.CLIENT, state.stage, version
    )
    out[version] = Began(roles, key, version, then.clock)
  return out


def flying(
  stage: Stage, state: StageState, cohort: Cohort
) -> dict[int, Flying]:
  """Who is in flight after a round. state: before it."""
  if cohort.timing is None or stage.arrivals is None:
    return {}
  late = stage.arrivals.late
  ended = set(cohort.timing.ended.tolist())
  now = Flying(
    state.clock,
    _ever(state.ever, cohort.timing.begun),
    dict(cohort.timing.begun),
    state.roles.shared,
    state.roles.frozen.get(reduction.SERVER),
  )
  out = {}
  for version, one in (state.flying | {cohort.round: now}).items():
    left = {i: x for i, x in one.plans.items() if i not in ended}
    if not left:
      continue
    if 0 <= late < cohort.round + 1 - version:  # it will be thrown away
      one = one._replace(shared=None, seen=None)
    out[version] = one._replace(plans=left)
  return out


def told(cohort: Cohort, arrivals: Any, losses: np.ndarray) -> Any:
  """The state of arrivals when they have heard what a cohort reports. losses:
  sums and counts, [K, 2]."""
  if cohort.timing is None or cohort.timing.heard is None:
    return arrivals
  came = ~cohort.lost
  count = losses[came, 1]
  mean = np.divide(losses[came, 0], count, out=np.zeros_like(count),
                   where=count > 0)  # fmt: skip
  said = Heard(cohort.round, cohort.ids[came], mean, count)
  return cohort.timing.heard(arrivals, said)


def _ever(ever: ActiveSet, begun) -> ActiveSet:
  return tuple(map(any, zip(ever, *set(begun.values()), strict=True)))
