"""The inputs of a round, prepared by a thread while the previous round runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax.cluster.placement import Placement
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.metrics import Metric
from fedms_jax.core.types import (
  Federation,
  Partition,
  Plan,
  Public,
  Roles,
  Sampling,
)
from fedms_jax.data import cohorts, lazy, private_rows
from fedms_jax.data import sampling as draws
from fedms_jax.schedules import Schedule
from fedms_jax.simulation import versions
from fedms_jax.simulation.state import Fresh, Options, Stage
from fedms_jax.simulation.versions import Timing
from fedms_jax.systems import arrivals as arrival
from fedms_jax.systems.arrivals import Arrivals


class Began(NamedTuple):
  """What clients began with in an earlier step: see `Round`."""

  roles: Roles
  key: jax.Array
  round: int
  clock: int


class Cohort(NamedTuple):
  """The clients of one round.

  ids: int64 [K]. lost: bool [K], which of them send nothing. rows: int32 [K,
  S, B], -1 is padding. steps: int [K]. weights: float32 [K], training rows.
  validation: int32 [K, V], -1 is padding. arrivals: their state after it.
  fresh: int32 [K, F], see `Stage.fresh`. timing: of arrivals that are live, see
  `Arrivals`; None: they are not.
  """

  round: int
  ids: np.ndarray
  lost: np.ndarray
  rows: np.ndarray
  steps: np.ndarray
  weights: np.ndarray
  validation: np.ndarray
  arrivals: Any = None
  fresh: np.ndarray | None = None
  timing: Timing | None = None


class Round(NamedTuple):
  """What a round begins with. plans: one per client of the cohort. key: the
  round's. clock: see `Moment`. noise: the channel's key. public: see
  `Received`. rows: of the public set, see `Context`. began: with what clients
  train that began in an earlier step, by its number. rates: see `Moment`."""

  algorithm: Algorithm
  roles: Roles
  memory: Any
  channel: Any
  cohort: Cohort
  plans: Sequence[Plan]
  key: jax.Array
  clock: int = 0
  noise: Any = None
  public: Public | None = None
  rows: Any = None
  began: Mapping[int, Began] = {}
  rates: Mapping[str, float] = {}


def read(cohort: Cohort, own: np.ndarray) -> np.ndarray:
  """The rows that a round reads of those clients whose places in the cohort
  are `own`; negative ones are padding."""
  parts = [cohort.rows[own].ravel(), cohort.validation[own].ravel()]
  if cohort.fresh is not None:
    parts.append(cohort.fresh[own].ravel())
  return np.concatenate(parts)


# (state of the arrivals, round, cost of tasks if they are live) -> the cohort.
Sampler = Callable[..., Cohort]


def sampling(options: Options, clients: int) -> Sampling:
  """How cohorts of so many clients are drawn."""
  o = options
  return draws.sampling(o.sampling, clients, o.cohort, o.cap, o.groups)


def usual(options: Options, stage: int, clients: int) -> Arrivals:
  """A sample each round, drawn as the options say, of which a share is lost."""
  o, how = options, sampling(options, clients)

  def sample(number: int) -> np.ndarray:
    return draws.sample(how, o.seed, stage, number)

  def lost(number: int, ids: np.ndarray) -> np.ndarray:
    return cohorts.lost(o.seed, stage, number, ids, o.dropout)

  return arrival.synchronous(sample, lost if o.dropout else None)


def sampler(
  federation: Federation,
  arrivals: Arrivals,
  options: Options,
  stage: int,
  fresh: Fresh | None = None,
) -> Sampler:
  """A pure function from the state of the arrivals, and a round, to what it is
  made of. Who has no rows in a round has no part in it."""
  o = options
  tokens = _tokens(federation) if o.weights == 'tokens' else None
  # One width for all rounds, so that evaluation compiles once per depth.
  most = int(federation.validation.sizes().max(initial=1))
  width = cohorts.looked_at(min(o.validation_rows, most))

  made = functools.partial(_batches, federation, o, stage)

  def sample(state: Any, number: int, cost: Any = None) -> Cohort:
    now = _at(federation, number)
    state, reports = arrivals.next(state, number, cost)
    arrival.check_reports(reports, number, arrivals.late)
    sizes = versions.sizes(federation.train, reports)
    there = sizes > 0
    ids = reports.ids[there]
    rows, counts = versions.batches(made, reports, there)
    held = np.full((len(ids), width), cohorts.PADDING, np.int32)
    found = cohorts.evaluation_rows(now.validation, ids, o.validation_rows)
    held[:, : found.shape[1]] = found
    weights = sizes[there].astype(np.float32)
    if o.weights == 'equal':
      weights = np.ones_like(weights)
    elif tokens is not None:
      weights = np.array(
        [tokens[now.train.of(k)].sum() for k in ids], np.float32
      )
    lost = reports.lost[there]
    more = None
    if fresh is not None:
      more = versions.fresh(functools.partial(fresh, now), reports, there)
    timing = versions.timing(reports, there) if arrivals.live else None
    return Cohort(
      number, ids, lost, rows, counts, weights, held, state, more, timing
    )

  return sample


def _batches(
  federation: Federation, o: Options, stage: int, ids: np.ndarray, number: int
):
  """(rows, steps) of clients that begin in a round, see `cohorts.batches`."""
  made = cohorts.batches
  if o.row_cap:
    made = functools.partial(private_rows.batches, cap=o.row_cap)
  return made(
    federation.train.at(number),
    ids,
    batch_size=o.batch_size,
    epochs=o.epochs,
    steps=steps(o, number),
    seed=o.seed,
    stage=stage,
    round=number,
  )


def _at(federation: Federation, number: int) -> Federation:
  """The training and validation rows that there are in a round."""
  return federation._replace(
    train=federation.train.at(number),
    validation=federation.validation.at(number),
  )


def score_rows(federation: Federation, options: Options) -> int:
  """Validation rows that a score rests on, once enough clients were met."""
  sizes = federation.validation.sizes()
  clients = max(options.reports, options.cohort)
  each = np.minimum(sizes, options.validation_rows).mean()
  return round(min(clients, len(sizes)) * float(each))


def asked(options: Options) -> tuple[Metric, ...]:
  """The metrics of validation rows that the schedule watches."""
  return (options.score,) if isinstance(options.score, Metric) else ()


def validated(
  schedule: Schedule, options: Options, number: int, rounds: int
) -> bool:
  """Whether the cohort of a round is validated: each time if the schedule, or
  what may end the stage, waits for it; else every so many rounds, and in the
  last one."""
  watches = options.score not in ('train_accuracy', 'train_loss')
  stop = options.stop
  awaited = schedule.reads and watches
  awaited |= stop is not None and stop.metric in ('score', 'capability')
  often = (number + 1) % max(options.validate_every, 1) == 0
  return awaited or often or number + 1 == rounds


def typical(
  stage: Stage, federation: Federation, options: Options, processes: int
) -> np.ndarray:
  """Local steps of as many clients as a process has of a cohort, such as they
  usually are, int64 [k]; none where nobody knows who takes part."""
  if stage.arrivals is not None:
    return np.zeros(0, np.int64)
  o, sizes = options, seen(stage, federation).train.at(0).sizes()
  each = steps(o, 0)
  found = cohorts.lengths(sizes[sizes > 0], o.batch_size, o.epochs, each)
  if not len(found):
    return found
  count = -(-min(o.cohort, len(found)) // processes)
  places = (np.arange(count) + 0.5) / count * len(found)
  return np.sort(found)[places.astype(int)]


def ahead(
  sample: Sampler, state: Any, rounds: range, prefetch: bool
) -> Iterator[Cohort]:
  """The cohorts of these rounds in order; a thread prepares one ahead."""
  if not prefetch:
    for number in rounds:
      cohort = sample(state, number)
      state = cohort.arrivals
      yield cohort
    return
  with ThreadPoolExecutor(1, thread_name_prefix='cohort') as pool:
    future = None
    for number in rounds:
      cohort = (future or pool.submit(sample, state, number)).result()
      state, last = cohort.arrivals, number == rounds[-1]
      future = None if last else pool.submit(sample, state, number + 1)
      yield cohort


def steps(o: Options, number: int) -> int:
  """Local steps of a round; the last one takes those that are left."""
  if not o.total:
    return o.steps
  return max(1, min(o.steps, o.total - number * o.steps))


def seen(stage: Stage, data: Federation) -> Federation:
  """The rows that a stage trains and scores on. The server has no others than
  the public ones, so that it is scored on rows that it trains on."""
  if stage.view is not None:
    data = stage.view(data)
  if not stage.central:
    return data
  one = Partition(np.array([0, len(data.public)]), data.public)
  return data._replace(train=one, validation=one)


def _tokens(federation: Federation) -> np.ndarray:
  """Tokens of each row of the table, int [M]."""
  inputs = federation.table.columns['inputs']
  read = lazy.whole({'inputs': inputs})['inputs']
  return (read >= 0).reshape(len(read), -1).sum(axis=1)


def own_rows(
  federation: Federation, place: Placement, stages: Sequence[Stage] = ()
) -> np.ndarray | None:
  """Rows that this process reads: those of its clients and newcomers, the
  pooled ones, what else the views of stages show its clients and, if clients
  get such, the public ones; None: all."""
  public = any(stage.fresh for stage in stages)
  if place.peers.processes == 1:
    return None
  f, parts = federation, []
  views = [seen(s, f) for s in stages if s.central or s.view is not None]
  more = [p for v in views for p in (v.train, v.validation)]
  for p in (f.train, f.validation, f.test, f.unseen, *more):
    own = place.mine(np.arange(p.num_clients), p.num_clients)
    # Neighbors in number, so that their rows are one slice.
    first, last = (own[0], own[-1] + 1) if len(own) else (0, 0)
    parts.append(p.rows[p.offsets[first] : p.offsets[last]])
  if public:
    parts.append(f.public)
  return np.unique(np.concatenate([*parts, f.pooled]))
