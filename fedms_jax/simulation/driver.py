"""THE driver: the only loop over rounds.

It keeps one round in flight: the metrics of round t - 1 are fetched while
round t runs, so a schedule sees a score one round late, resumed or not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax import activation, metrics, programs, rng, rounds
from fedms_jax.base import (
  ActiveSet,
  Algorithm,
  Backbone,
  Federation,
  Plan,
  Roles,
)
from fedms_jax.simulation import cohorts, execution, planner, timeline
from fedms_jax.simulation.importance import block_importance
from fedms_jax.simulation.placement import Placement
from fedms_jax.simulation.state import (
  Handover,
  NonFiniteError,
  Options,
  Preempted,
  Stage,
  StageState,
)
from fedms_jax.simulation.tables import Tables
from fedms_jax.systems.ledger import Entry, Meter


class InFlight(NamedTuple):
  """A dispatched round whose metrics are still on the device. plans, ever,
  derived: for the ledger, see `Simulation._entry`."""

  cohort: cohorts.Cohort
  plans: Sequence[Plan]
  ever: ActiveSet
  derived: int
  chunks: Sequence[execution.Chunk]
  validation: Any
  measured: dict[str, Any]
  record: dict[str, Any]


class Simulation:
  """Runs stages over a federation.

  keeper: saves and restores, see `keeper.py`. observer: is told of rounds and
  asked whether to stop, see `observer.py`. place: devices and processes; None:
  one device. ledgers: one `Entry` per stage.
  """

  def __init__(
    self,
    backbone: Backbone,
    federation: Federation,
    roles: Roles,
    stages: Sequence[Stage],
    options: Options,
    *,
    keeper,
    observer,
    place: Placement | None = None,
  ):
    self.backbone = backbone
    self.federation = federation
    self.stages = stages
    self.options = options
    self.keeper = keeper
    self.observer = observer
    self.ledgers: dict[str, Entry] = {}
    self.place = place or Placement()
    self.tables = Tables(
      federation.table.columns,
      scope=options.scope,
      place=options.place,
      budget=options.budget,
      host_budget=options.host_budget,
      block=options.block,
      on_block=observer.derived,
      put=self.place.whole,
      split=self.place.split,
      devices=self.place.width,
      only=self._own_rows(),
    )
    self.planner = planner.Planner(
      options.clients,
      options.chunk,
      memory=options.memory,
      devices=self.place.width,
      steps=options.unroll,
      tell=observer.note,
    )
    self.initial = roles
    self._stopping = False
    self._finite: dict[str, Any] = {}

  def run(self, state: StageState | None = None) -> StageState:
    """Runs all stages, or goes on from `state`; gives the state after the
    last round."""
    if state is None:
      state = self._begin(0, self.initial, None, None)
    state = self._placed(state)
    while True:
      state = self._run_stage(state)
      self.ledgers[self.stages[state.stage].name] = state.ledger
      if state.stage + 1 == len(self.stages):
        return state
      state = self._begin(
        state.stage + 1, state.roles, state.last, state.importance
      )

  def plan(self, state: StageState) -> Plan:
    """The plan by which the models of a state are evaluated."""
    boundary = activation.boundary(state.ever)
    return Plan((True,) * self.backbone.blocks, boundary)

  def sampler(self, stage: int):
    """The cohorts of a stage: a pure function of the round."""
    o = self.options
    return cohorts.sampler(
      self.federation,
      seed=o.seed,
      stage=stage,
      size=o.cohort,
      batch_size=o.batch_size,
      epochs=o.epochs,
      steps=o.steps,
      validation_rows=o.validation_rows,
    )

  def version(self, state: StageState) -> int:
    """Rounds done over all stages."""
    return sum(s.rounds for s in self.stages[: state.stage]) + state.round

  def _score_rows(self) -> int:
    """Validation rows that a score rests on, once enough clients were met."""
    sizes = self.federation.validation.sizes()
    clients = max(self.options.reports, self.options.cohort)
    each = np.minimum(sizes, self.options.validation_rows).mean()
    return round(min(clients, len(sizes)) * float(each))

  def _begin(self, index: int, before: Roles, inherited, importance):
    """The state before the first round of a stage."""
    stage = self.stages[index]
    key = rng.stream(self.options.seed, rng.INIT, index)
    roles = programs.jit(light=True)(stage.algorithm.begin)(key, before)
    roles = self._on_devices(roles)
    measured = [importance]

    def measure():
      if measured[0] is None:
        measured[0] = block_importance(self, index, roles)
      return measured[0]

    schedule = stage.schedule(Handover(inherited, measure, self._score_rows()))
    return StageState(
      stage=index,
      round=0,
      roles=roles,
      server=self.place.whole(
        rounds.begin_server(stage.algorithm, roles.shared)
      ),
      progress=schedule.init,
      late=(),
      reports={},
      ever=(False,) * self.backbone.blocks,
      inherited=inherited,
      last=inherited,
      importance=measured[0],
      ledger=Entry(),
    )

  def _own_rows(self) -> np.ndarray | None:
    """Rows that this process reads: those of its clients and newcomers, and
    the pooled ones; None: all."""
    if self.place.peers.processes == 1:
      return None
    f, parts = self.federation, []
    for p in (f.train, f.validation, f.test, f.unseen):
      own = self.place.mine(np.arange(p.num_clients), p.num_clients)
      # Neighbors in number, so that their rows are one slice.
      first, last = (own[0], own[-1] + 1) if len(own) else (0, 0)
      parts.append(p.rows[p.offsets[first] : p.offsets[last]])
    return np.unique(np.concatenate([*parts, f.pooled]))

  def _on_devices(self, roles: Roles) -> Roles:
    """Roles where the devices of this process need them."""
    frozen = self.place.frozen(roles.frozen)
    return Roles(frozen, *self.place.whole((roles.shared, roles.personal)))

  def _placed(self, state: StageState) -> StageState:
    """A state, that a checkpoint may have held, on the devices."""
    server = self.place.whole(state.server)
    return state._replace(roles=self._on_devices(state.roles), server=server)

  def _run_stage(self, state: StageState) -> StageState:
    """All rounds of a stage that are left."""
    stage, o = self.stages[state.stage], self.options
    importance = state.importance
    schedule = stage.schedule(
      Handover(state.inherited, lambda: importance, self._score_rows())
    )
    store = self.keeper.store(stage.name, state.roles.personal)
    sample = self.sampler(state.stage)
    self.tables.forget()
    self._meter = Meter(
      self.backbone,
      stage.algorithm,
      state.roles,
      batch=self.options.batch_size,
      slots=self.options.slots,
    )
    self._met = (
      {int(i) for t in range(state.round) for i in sample(t).ids}
      if state.round
      else set()
    )
    self.observer.stage(stage.name, state.round, stage.rounds)
    flight = None
    left = range(state.round, stage.rounds)
    ahead = cohorts.ahead(sample, left, o.prefetch)
    for cohort in timeline.rounds(stage.name, ahead):
      state, dispatched = self._dispatch(state, schedule, store, cohort)
      if flight is not None:
        state = self._settle(state, flight)
      flight = dispatched
      with timeline.span('store'):
        self.keeper.after_round(self, state, store)
      stop = self._stop()
      last = cohort.round + 1 == stage.rounds
      due = self.keeper.persistent and state.round % o.checkpoint_every == 0
      if stop or last or due:
        state, flight = self._settle(state, flight), None
        with timeline.span('store'):
          self.keeper.save(self, state, store)
        if stop and not (last and state.stage + 1 == len(self.stages)):
          raise Preempted(f'{stage.name}, round {cohort.round + 1}')
    return state

  def _stop(self) -> bool:
    """Whether the run shall save and stop; all processes decide the same."""
    if self.place.peers.processes > 1:
      return self._stopping
    return self.observer.stop_requested()

  def _dispatch(self, state: StageState, schedule, store, cohort):
    """Starts a round: the state after it, and what is still in flight."""
    start = time.perf_counter()
    algorithm = self.stages[state.stage].algorithm
    # The last round may or may not have been fetched; it is not looked at.
    progress, late = state.progress, state.late
    while late and late[0][0] < cohort.round - 1:
      progress, late = schedule.observe(progress, late[0][1]), late[1:]
    active = schedule.active(progress, cohort.round, cohort.ids)
    ever = tuple(map(any, zip(state.ever, *active, strict=True)))
    boundary = activation.boundary(ever)
    variant = algorithm.variant or (lambda number, client: None)
    plans = [
      Plan(a, boundary, variant(cohort.round, int(i)))
      for a, i in zip(active, cohort.ids, strict=True)
    ]
    own = self.place.mine(cohort.ids, self.federation.train.num_clients)
    with timeline.span('load'):
      personal = store.gather(cohort.ids[own])
    key = rng.stream(self.options.seed, rng.CLIENT, state.stage, cohort.round)
    needed = [cohort.rows[own].ravel(), cohort.validation[own].ravel()]
    before = self.tables.derived_rows
    whole = Plan((True,) * len(ever), boundary)
    table, translate = self.tables.view(
      algorithm, state.roles, np.concatenate(needed), whole
    )
    how = self.planner.choose(
      algorithm,
      state.roles,
      table,
      cohort,
      [plans[i] for i in own],
      self.tables.sent,
    )
    here = execution.Here(self.place, table, translate(cohort.rows), own)
    with timeline.span('train') as done:
      roles, server, chunks, measured = done(
        execution.train(
          algorithm,
          state.roles,
          state.server,
          personal,
          cohort,
          here,
          plans,
          key,
          how,
        )
      )
    with timeline.span('evaluate') as done:
      validation = done(
        execution.validate(
          algorithm,
          roles,
          chunks,
          here,
          translate(cohort.validation),
          whole,
          how.scored,
        )
      )
    with timeline.span('store'):
      for chunk in chunks:
        count = len(chunk.places)
        kept = jax.tree.map(lambda x, n=count: x[:n], chunk.personal)
        store.scatter(cohort.ids[chunk.places], kept, self.version(state) + 1)
    derived = self.tables.derived_rows - before
    record = {
      'stage': self.stages[state.stage].name,
      'round': cohort.round,
      'depth': float(np.mean([sum(a) for a in active])),
      'active': sum(1 << b for b, on in enumerate(ever) if on),
      'clients': len(cohort.ids),
      'padding_efficiency': planner.padding_efficiency(
        cohort.steps, chunks, how
      ),
      'started': start,
    }
    state = state._replace(
      round=cohort.round + 1,
      roles=roles,
      server=server,
      progress=progress,
      late=late,
      ever=ever,
      last=max(active, key=sum),
    )
    return state, InFlight(
      cohort, plans, ever, derived, chunks, validation, measured, record
    )

  def _entry(self, flight: InFlight, derived: int) -> Entry:
    """The ledger's entry of a round. derived: rows, by all processes."""
    cohort, plans = flight.cohort, flight.plans
    entry, plan_of = Entry(), np.array([hash(p) for p in plans])
    for plan in dict.fromkeys(plans):
      places = np.flatnonzero(plan_of == hash(plan))
      ids = {int(i) for i in cohort.ids[places]}
      entry = entry.plus(
        self._meter.group(
          plan,
          flight.ever,
          clients=len(places),
          newcomers=len(ids - self._met),
          cohort=len(cohort.ids),
          examples=float((cohort.rows[places] >= 0).sum()),
          steps=float(cohort.steps[places].sum()),
          derived=derived,
          scope=self.tables.scope,
        )
      )
      self._met |= ids
      derived = 0  # counted once
    return entry

  def _settle(self, state: StageState, flight: InFlight) -> StageState:
    """Fetches a round's metrics, reports them, and notes its score."""
    algorithm = self.stages[state.stage].algorithm
    trained, held, derived = self._fetched(algorithm, flight)
    entry = self._entry(flight, derived)
    skipped = trained.pop('skipped')[:, 0] > 0
    served = algorithm.served
    record = flight.record | entry._asdict()
    record['seconds'] = time.perf_counter() - record.pop('started')
    losses, scores = trained.pop('loss'), trained.pop('score')
    record['train_loss'] = metrics.mean_over_clients(losses)
    record['train_score'] = metrics.mean_over_clients(scores)
    record['score'] = metrics.mean_over_clients(held[f'score/{served}'])
    for name, values in trained.items():
      record[name] = metrics.mean_over_clients(values)
    measured = jax.device_get(flight.measured)
    record |= {name: float(x) for name, x in measured.items()}
    record['skipped'] = int(skipped.sum())
    if skipped.any():
      self._complain(flight.cohort, skipped, record)
    else:
      self._finite = record
    reported = {
      'validation': held[f'score/{served}'],
      'train_accuracy': scores,
      'train_loss': losses,
    }[self.options.score]
    reports = self._reports(state.reports, flight.cohort.ids, reported)
    # Over rows: a client with two rows would else be as loud as all others.
    record['capability'] = float(
      metrics.mean(sum(map(np.array, reports.values())))
    )
    self.observer.round(record)
    late = (*state.late, (flight.cohort.round, record['capability']))
    ledger = state.ledger.plus(entry)
    return state._replace(late=late, reports=reports, ledger=ledger)

  def _fetched(self, algorithm: Algorithm, flight: InFlight):
    """A round's metrics (trained, held) [K, 2] by name, and its derived rows,
    of all processes; whether one of them was asked to stop comes with it."""
    count = len(flight.cohort.ids)
    names = [*algorithm.update.sums, 'skipped']
    chunks = [(chunk.places, chunk.sums) for chunk in flight.chunks]
    trained = _gathered(count, names, chunks)
    held = _gathered(count, [f'score/{algorithm.served}'], flight.validation)
    stop = np.int32(self.observer.stop_requested())
    mine = (trained, held, np.int32(flight.derived), stop)
    trained, held, derived, stop = self.place.peers.summed(mine)
    self._stopping = bool(stop)
    return trained, held, float(derived)

  def _reports(self, before, ids, sums):
    """The newest report of each client, the latest ones of all.

    A cohort's own mean moves with who is in it, by more than any threshold
    of a schedule; the mean over everybody's newest report does not.
    """
    new = {
      int(i): (float(s), float(w)) for i, (s, w) in zip(ids, sums, strict=True)
    }
    if not self.options.reports:
      return new
    kept = {i: pair for i, pair in before.items() if i not in new} | new
    return dict(list(kept.items())[-max(self.options.reports, len(new)) :])

  def _complain(self, cohort, skipped, record) -> None:
    """Stops at a non-finite update, unless the client is to be skipped."""
    if self.options.on_nan == 'skip':
      return
    clients = ', '.join(str(i) for i in cohort.ids[skipped])
    shown = ('round', 'train_loss', 'train_score', 'score')
    finite = {k: self._finite[k] for k in shown if k in self._finite}
    raise NonFiniteError(
      f'{record["stage"]}, round {cohort.round}: non-finite update of client '
      f'{clients}. Last finite metrics: {finite or "none"}. Lower '
      '--client.learning_rate, or drop such updates with --on_nan=skip.'
    )


def _gathered(count: int, names, parts) -> dict[str, np.ndarray]:
  """Metrics [count, 2] on the host, from chunks of (places, sums); zero for
  clients of other processes."""
  out = {name: np.zeros((count, 2), np.float32) for name in names}
  for places, sums in jax.device_get(list(parts)):
    for name in names:
      out[name][places] = sums[name][: len(places)]
  return out
