"""THE driver: the only loop over rounds.

It keeps one round in flight: the metrics of round t - 1 are fetched while
round t runs, where the schedule can wait for its score.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence

from fedms_jax.cluster import memory
from fedms_jax.cluster.placement import Placement
from fedms_jax.core import activation, seeds
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation, Partition, Plan, Roles
from fedms_jax.simulation import (
  carried,
  cohorts,
  coming,
  coverage,
  curves,
  evaluation,
  execution,
  handover,
  live,
  planner,
  public_rows,
  recent,
  stopping,
  timeline,
)
from fedms_jax.simulation.accounting import Accounting, InFlight, record_of
from fedms_jax.simulation.ahead import Opening
from fedms_jax.simulation.importance import block_importance
from fedms_jax.simulation.state import (
  Options,
  Preempted,
  Stage,
  StageState,
)
from fedms_jax.simulation.tables import Tables
from fedms_jax.simulation.tangents import rows_scored
from fedms_jax.systems.ledger import Entry, Meter


class Simulation:
  """Runs stages over a federation.

  run_store: saves and restores, see `run_store.py`. observer: is called after
  each round and asked whether to stop, see `observer.py`. place: devices and
  processes; None: one device. aimed: see `curves.py`. final, after: see
  `coming.py`.
  """

  def __init__(
    self,
    federation: Federation,
    roles: Roles,
    stages: Sequence[Stage],
    options: Options,
    *,
    run_store,
    observer,
    place: Placement | None = None,
  ):
    self.federation, self.stages = federation, stages
    self.aimed: Partition | None = None
    self.final: evaluation.Scope | None = None
    self.after: Callable[[], Iterable[Opening]] | None = None
    self.options = options
    self.run_store = run_store
    self.observer = observer
    self.ledgers: dict[str, Entry] = {}
    self.place = place or Placement()
    self.tables = Tables(
      federation.table.columns,
      scope=options.scope,
      place=options.place,
      budget=options.budget,
      host_budget=options.host_budget,
      device_memory=options.memory,
      block=options.block,
      on_block=observer.derived,
      put=self.place.whole,
      split=self.place.split,
      devices=self.place.width,
      only=cohorts.own_rows(federation, self.place, stages),
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
    self.score_rows = cohorts.score_rows(federation, options)
    public_rows.check(stages, federation)
    live.check(self)
    self.accounting = Accounting(options, self.place.peers, observer)

  def run(self, state: StageState | None = None) -> StageState:
    """Runs all stages, or goes on from `state`; gives the state after the
    last round."""
    if state is None:
      state = self._begin(0, self.initial, None)
    state = handover.placed(self.place, state)
    memory.make_room()  # before threads compile for this stage
    self._ahead = coming.begin(self, state)
    with contextlib.closing(self._ahead):
      while True:
        self._ahead.stage(self.stages[state.stage].algorithm)
        state = self._run_stage(state)
        self.ledgers[self.stages[state.stage].name] = state.ledger
        if state.stage + 1 == len(self.stages):
          coming.foresee(self, self._ahead, state, at_once=True)
          return state
        memory.make_room()
        state = self._begin(state.stage + 1, state.roles, state)

  def plan(self, state: StageState) -> Plan:
    """The plan by which the models of a state are evaluated."""
    return Plan((True,) * len(state.ever), activation.boundary(state.ever))

  def sampler(self, index: int):
    """The cohorts of a stage, and who reports in them."""
    return live.sampler(self, index)

  def local(self, index: int) -> Options:
    """The options of a stage."""
    return self.options._replace(**self.stages[index].local)

  def version(self, state: StageState) -> int:
    """Rounds done over all stages."""
    return sum(s.rounds for s in self.stages[: state.stage]) + state.round

  def _begin(
    self, index: int, roles: Roles, before: StageState | None
  ) -> StageState:
    """The state before the first round of a stage. roles, before: the last of
    the stage before."""
    stage, seed = self.stages[index], self.options.seed
    key = seeds.stream(seed, Stream.INIT, index)
    roles = handover.begun(stage.algorithm, key, roles)
    roles = handover.on_devices(self.place, roles)
    past = handover.past(self, before)
    begun = handover.server(stage, roles, past, seed)
    return handover.entered(
      self,
      index,
      begun,
      before,
      lambda: block_importance(self, index, roles),
    )

  def _run_stage(self, state: StageState) -> StageState:
    """All rounds of a stage that are left."""
    stage, o = self.stages[state.stage], self.local(state.stage)
    schedule = handover.schedule(self, state)
    store = recent.kept(
      self.store(state), state.roles.personal, self.federation, o, self.place
    )
    self.tables.forget()
    meter = Meter(
      stage.algorithm, state.roles, batch=o.batch_size, slots=o.slots
    )
    self.accounting.begin(stage.algorithm, meter)
    processes = self.place.peers.processes
    usual = cohorts.typical(stage, self.federation, o, processes)
    self.planner.begin(usual, getattr(store, 'nbytes', 0))
    rounds = handover.rounds(self.stages, state)
    self.observer.stage(stage.name, state.round, rounds)
    flight, left = None, range(state.round, rounds)
    if stopping.over(state.watch, state.round):
      left = range(0)  # it was saved after its last round
    source = live.source(self, lambda: state, schedule, meter, left)
    for cohort in timeline.rounds(stage.name, source):
      if flight is not None and not schedule.delay:
        state, flight = self.accounting.settle(state, flight), None
      if schedule.over(state.progress, cohort.round):
        return self._ended(state, flight, store)
      state, dispatched = self._dispatch(state, schedule, store, cohort)
      if flight is not None:
        state = self.accounting.settle(state, flight)
      flight = dispatched
      with timeline.span('store'):
        self.run_store.after_round(self, state, store)
      stop = self._stop()
      last = cohort.round + 1 == rounds
      last |= stopping.over(state.watch, state.round)
      if curves.due(o, state.round, last):
        with timeline.span('evaluate'):
          flight = flight._replace(seen=curves.begin(self, state))
      due = stop or last or self.run_store.due(state.round)
      if due or live.is_live(stage):
        state, flight = self.accounting.settle(state, flight), None
      if due:
        with timeline.span('store'):
          self.run_store.save(self, state, store)
        if stop and not (last and state.stage + 1 == len(self.stages)):
          raise Preempted(f'{stage.name}, round {cohort.round + 1}')
      if last and state.round < rounds:
        break  # it ends early
    return state

  def _ended(self, state: StageState, flight, store) -> StageState:
    """The state of a stage that its schedule has ended, saved."""
    if flight is not None:  # else it was resumed from there
      state = self.accounting.settle(state, flight)
      self.run_store.save(self, state, store)
    return state

  def _stop(self) -> bool:
    """Whether the run shall save and stop; all processes decide the same."""
    if self.place.peers.processes > 1:
      return self.accounting.stopping
    return self.observer.stop_requested()

  def store(self, state: StageState):
    """The clients' personal states in the stage of a state."""
    return carried.store(self.run_store, self.stages, self.initial, state)

  def _dispatch(self, state: StageState, schedule, store, cohort):
    """Starts a round: the state after it, and what is still in flight."""
    start = time.perf_counter()
    stage = self.stages[state.stage]
    rounds = handover.rounds(self.stages, state)
    state, task = coverage.begun(self, state, schedule, store, cohort)
    derived = self.tables.derived_rows
    self._ahead.expected(task, self.observer)
    here, held, how = self.here(task, self.plan(state), store)
    scored = cohorts.validated(schedule, self.options, cohort.round, rounds)
    asked = task, here, how, scored
    self._ahead.ready(*asked, self.observer)
    with timeline.span('train') as done:
      after = done(execution.train(task, here, how))
    validation = None
    if scored:
      validation = self._validate(after, here, held, how, state)
    self.observer.compiling('')
    record = record_of(task, state.ever, state.last, after.chunks, how)
    record |= {'stage': stage.name, 'started': start}
    carried.keep(store, cohort, after.chunks, self.version(state) + 1)
    state = state._replace(
      round=cohort.round + 1,
      clock=state.clock + int(cohort.steps.max(initial=0)),
      roles=after.roles,
      memory=after.memory,
      channel=after.channel,
      arrivals=cohort.arrivals,
      flying=live.flying(stage, state, cohort),
    )
    # The end of a stage is certain, and what a score will do is a guess.
    if schedule.reads and coming.near(rounds, cohort.round):
      coming.foresee(self, self._ahead, state)
    if self._ahead.idle and self._ahead.look(
      *asked, schedule, state.progress, rounds
    ):
      coming.foresee(self, self._ahead, state)
    return state, InFlight(
      cohort,
      task.plans,
      state.ever,
      self.tables.derived_rows - derived,
      self.tables.scope,
      after.chunks,
      validation,
      after.measured,
      record,
      schedule.observe,
      rows_scored(schedule, cohort),
      score=coverage.score(stage),
    )

  def _validate(self, after, here, held, how, state: StageState):
    """What the cohort scores on validation rows, on the device."""
    with timeline.span('evaluate') as done:
      return done(
        execution.validate(
          self.stages[state.stage].algorithm, after.roles, after.chunks, here,
          held, self.plan(state), how.scored, cohorts.asked(self.options),
        )
      )  # fmt: skip

  def here(self, task: cohorts.Round, whole: Plan, store):
    """(the round as this process sees it, validation rows in its table, how
    it is executed)."""
    cohort, place = task.cohort, self.place
    own = place.mine(cohort.ids, self.federation.train.num_clients)
    own = own[~cohort.lost[own]]
    with timeline.span('load'):
      personal = store.gather(cohort.ids[own])
    table, translate = self.tables.view(
      task.algorithm, task.roles, cohorts.read(cohort, own), whole
    )
    plans = [task.plans[i] for i in own]
    how = self.planner.choose(task, table, plans, self.tables.sent)
    fresh = None if cohort.fresh is None else translate(cohort.fresh)
    here = execution.Here(
      place, table, translate(cohort.rows), own, personal, fresh
    )
    return here, translate(cohort.validation), how
