"""What came of a round: its metrics are fetched, its costs and score noted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax.cluster.processes import SingleProcess
from fedms_jax.core import metrics
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.metrics import Metric
from fedms_jax.core.types import ActiveSet, Plan
from fedms_jax.simulation import (
  cohorts,
  curves,
  execution,
  live,
  stopping,
  tangents,
)
from fedms_jax.simulation.planner import padding_efficiency
from fedms_jax.simulation.state import NonFiniteError, Options, StageState
from fedms_jax.systems.ledger import Entry, Meter


class InFlight(NamedTuple):
  """A dispatched round whose metrics are still on the device. plans, ever,
  derived, scope: for the ledger, see `Accounting._entry`. validation: None if
  there was none in this round. observe: of the schedule. scored: rows that
  clients scored their blocks on. seen: scores on test rows, or None. score: see
  `Guard`."""

  cohort: cohorts.Cohort
  plans: Sequence[Plan]
  ever: ActiveSet
  derived: int
  scope: str
  chunks: Sequence[execution.Chunk]
  validation: Any
  measured: dict[str, Any]
  record: dict[str, Any]
  observe: Callable[[Any, int, float], Any]
  scored: float = 0.0
  seen: curves.Begun | None = None
  score: Callable[[np.ndarray, int], float] | None = None


class Accounting:
  """Keeps the accounts of a run, stage by stage.

  observer: is called after each round. stopping: whether some process of the
  run was asked to stop, as of the last round that was settled.
  """

  def __init__(self, options: Options, peers: SingleProcess, observer):
    self.stopping = False
    self._options = options
    self._peers = peers
    self._observer = observer
    self._finite: dict[str, Any] = {}

  def begin(self, algorithm: Algorithm, meter: Meter) -> None:
    """Another stage."""
    self._algorithm = algorithm
    self._meter = meter
    self._settled = time.perf_counter()

  def settle(self, state: StageState, flight: InFlight) -> StageState:
    """Fetches a round's metrics, reports them, and notes its score."""
    algorithm = self._algorithm
    trained, held, derived = self._fetched(algorithm, flight)
    entry, met = self._entry(flight, derived, state.met)
    skipped = trained.pop('skipped')[:, 0] > 0
    record = flight.record | entry._asdict() | told(flight.cohort)
    now = time.perf_counter()
    record['seconds'] = now - record.pop('started')
    record['wall_seconds'], self._settled = now - self._settled, now
    losses, scores = trained.pop('loss'), trained.pop('score')
    record |= self._means(losses, scores, trained, held)
    measured = jax.device_get(flight.measured)
    record |= {name: float(x) for name, x in measured.items()}
    record['skipped'] = int(skipped.sum())
    if skipped.any():
      self._complain(flight.cohort, skipped, record)
    else:
      self._finite = record
    sources = {'train_accuracy': scores, 'train_loss': losses}
    came, reports = ~flight.cohort.lost, state.reports
    reported = self._reported(sources, held)
    if reported is not None:
      ids = flight.cohort.ids[came]
      reports = self._reports(state.reports, ids, reported[came])
      record['capability'] = self._capability(reports)
      if flight.score is not None:
        number = flight.cohort.round
        record['capability'] = flight.score(reported[came], number)
    if flight.seen is not None:
      record |= curves.finish(
        flight.seen, self._options, algorithm.served, self._peers
      )
    self._observer.round(record)
    state = state._replace(
      arrivals=live.told(flight.cohort, state.arrivals, losses),
      met=met,
      reports=reports,
      ledger=state.ledger.plus(entry),
      watch=stopping.observe(self._options.stop, state.watch, record),
    )
    heard = came.any() or flight.score is not None
    if reported is None or not heard:
      return state  # nobody has said anything
    progress = flight.observe(
      state.progress, flight.cohort.round, record['capability']
    )
    return state._replace(progress=progress)

  def _reported(self, sources: dict[str, Any], held: dict[str, Any]):
    """The sums [K, ...] of what the schedule watches; None if that was not
    measured in this round."""
    wanted, served = self._options.score, self._algorithm.served
    if isinstance(wanted, Metric):
      return held.get(f'metric/{wanted.name}/{served}')
    return sources.get(wanted, held.get(f'score/{served}'))

  def _capability(self, reports: dict[int, tuple[float, ...]]) -> float:
    """What the schedule watches, over rows: a client with two rows would else
    be as loud as all others."""
    wanted = self._options.score
    if not isinstance(wanted, Metric):
      pairs = map(np.array, reports.values())
      return float(metrics.mean(np.asarray(sum(pairs, np.zeros(2)))))
    if not reports:
      return float('nan')
    total = np.asarray(list(reports.values()), np.float64).sum(axis=0)
    return float(wanted.finish(total.reshape(wanted.shape)))

  def _means(self, losses, scores, trained, held) -> dict[str, float]:
    """Means over the clients of a round. trained: what else was measured in
    training. held: on validation rows; {}: nothing."""
    algorithm, found = self._algorithm, {}
    found['train_loss'] = metrics.mean_over_clients(losses)
    found['train_score'] = metrics.mean_over_clients(scores)
    if algorithm.task.perplexity:
      found['tokens'] = float(losses[:, 1].sum())  # that were learned
    told = {}
    if held:
      validated = held[f'score/{algorithm.served}']
      found['score'] = metrics.mean_over_clients(validated)
      lost = held[f'loss/{algorithm.served}']
      found['validation_loss'] = metrics.mean_over_clients(lost)
      told = {name: held[name] for name in algorithm.stats}
    for name, values in (trained | told).items():
      found[name] = metrics.mean_over_clients(values)
    return found

  def _entry(self, flight: InFlight, derived: float, met: np.ndarray):
    """(the ledger's entry of a round, who was met). derived: rows, by all
    processes. What is spent by who is lost is wasted, and not simulated."""
    cohort, plans = flight.cohort, flight.plans
    rows = cohort.rows
    if self._options.row_cap:
      rows = rows[..., :-1]  # the last one of a step is nobody's
    entry, met = Entry(), met.copy()
    if flight.scored:
      entry = self._meter.scoring(flight.scored, len(cohort.ids), tangents.ROWS)
    spent, versions = spending(cohort)
    before = {} if cohort.timing is None else cohort.timing.before
    kinds = list(zip(plans, spent, versions, strict=True))
    for kind in dict.fromkeys(kinds):
      places = np.array([i for i, k in enumerate(kinds) if k == kind])
      ids, (plan, shares, version) = cohort.ids[places], kind
      lost = shares is not None
      one = self._meter.group(
        plan,
        before.get(version, flight.ever),
        clients=len(places),
        newcomers=int((~met[ids]).sum()),
        cohort=len(cohort.ids),
        examples=float((rows[places] >= 0).sum()),
        steps=float(cohort.steps[places].sum()),
        derived=0 if lost else derived,
        scope=flight.scope,
        fresh=fresh_rows(cohort, places),
      )
      if lost:
        one = self._meter.unsent(one, *shares)
      else:
        derived = 0  # counted once
      entry = entry.plus(one)
      met[ids] |= not lost or shares[0] >= 1
    timing = cohort.timing
    if timing is not None:
      entry = entry._replace(virtual_time=timing.seconds)
    return entry, met

  def _fetched(self, algorithm: Algorithm, flight: InFlight):
    """A round's metrics (trained, held) [K, 2] by name, and its derived rows,
    of all processes; whether one of them was asked to stop comes with it."""
    count = len(flight.cohort.ids)
    names = [*algorithm.update.sums, 'skipped']
    chunks = [(chunk.places, chunk.sums) for chunk in flight.chunks]
    trained = _gathered(count, names, chunks)
    held = self._held(count, flight)
    stop = np.int32(self._observer.stop_requested())
    mine = (trained, held, np.int32(flight.derived), stop)
    trained, held, derived, stop = self._peers.summed(mine)
    self.stopping = bool(stop)
    return trained, held, float(derived)

  def _held(self, count: int, flight: InFlight) -> dict[str, np.ndarray]:
    """What the cohort scored on validation rows; {} if it was not asked."""
    if flight.validation is None:
      return {}
    wanted, served = self._options.score, self._algorithm.served
    names = [f'{x}/{served}' for x in ('score', 'loss')]
    names += self._algorithm.stats
    held = _gathered(count, names, flight.validation)
    if isinstance(wanted, Metric):
      name = f'metric/{wanted.name}/{served}'
      held |= _gathered(count, [name], flight.validation, wanted.shape)
    return held

  def _reports(self, before, ids, sums):
    """The newest report of each client, the latest ones of all.

    A cohort's own mean moves with who is in it, by more than any threshold
    of a schedule; the mean over everybody's newest report does not.
    """
    new = {
      int(i): tuple(np.ravel(x).astype(float).tolist())
      for i, x in zip(ids, sums, strict=True)
    }
    if not self._options.reports:
      return new
    kept = {i: pair for i, pair in before.items() if i not in new} | new
    return dict(list(kept.items())[-max(self._options.reports, len(new)) :])

  def _complain(self, cohort, skipped, record) -> None:
    """Stops at a non-finite update, unless the client is to be skipped."""
    if self._options.on_nan == 'skip':
      return
    clients = ', '.join(str(i) for i in cohort.ids[skipped])
    shown = ('round', 'train_loss', 'train_score', 'score')
    finite = {k: self._finite[k] for k in shown if k in self._finite}
    raise NonFiniteError(
      f'{record["stage"]}, round {cohort.round}: non-finite update of client '
      f'{clients}. Last finite metrics: {finite or "none"}. Lower '
      '`learning_rate`, or drop such updates with `Options.on_nan`=skip.'
    )


def spending(cohort: cohorts.Cohort):
  """(of each client None, or the shares of what it receives, computes and sends
  that were spent in vain; the round in which each began)."""
  timing, count = cohort.timing, len(cohort.ids)
  lost = cohort.lost.tolist()
  if timing is None:
    return [(1.0, 1.0, 0.0) if x else None for x in lost], [
      cohort.round
    ] * count
  shares = [(1.0, 1.0, 0.0)] * count
  if timing.spent is not None:
    shares = [tuple(row) for row in timing.spent.tolist()]
  spent = [s if x else None for s, x in zip(shares, lost, strict=True)]
  return spent, timing.versions.tolist()


def told(cohort: cohorts.Cohort) -> dict[str, float]:
  """What arrivals say of a round."""
  return {} if cohort.timing is None else dict(cohort.timing.told)


def fresh_rows(cohort: cohorts.Cohort, places) -> float:
  """How many rows these clients have beside those of their steps."""
  if cohort.fresh is None:
    return 0.0
  return float((cohort.fresh[places] >= 0).sum())


def _gathered(count: int, names, parts, shape=(2,)) -> dict[str, np.ndarray]:
  """Metrics [count, *shape] on the host, from chunks of (places, sums); zero
  for clients of other processes."""
  out = {name: np.zeros((count, *shape), np.float32) for name in names}
  for places, sums in jax.device_get(list(parts)):
    for name in names:
      out[name][places] = sums[name][: len(places)]
  return out


def record_of(
  task: cohorts.Round, ever: ActiveSet, last: ActiveSet | None, chunks, how
) -> dict[str, Any]:
  """What is known of a round when it is dispatched. ever, last: blocks that
  were active until now, and the largest set of the round."""
  cohort = task.cohort
  depths = [sum(plan.active) for plan in task.plans]
  depths = depths or [sum(last or ())]  # of an empty cohort
  return {
    'round': cohort.round,
    'depth': float(np.mean(depths)),
    'active': sum(1 << b for b, on in enumerate(ever) if on),
    'clients': int((~cohort.lost).sum()),
    'lost': int(cohort.lost.sum()),
    'padding_efficiency': padding_efficiency(cohort.steps, chunks, how),
  }
