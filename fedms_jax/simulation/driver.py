"""THE driver: the only loop over rounds.

It keeps one round in flight: the metrics of round t - 1 are fetched while
round t runs, so a schedule sees a score one round late, resumed or not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import numpy as np

from fedms_jax.cluster.placement import Placement
from fedms_jax.core import activation, compile, reduction, seeds
from fedms_jax.core.types import Backbone, Federation, Plan, Roles
from fedms_jax.simulation import cohorts, execution, planner, timeline
from fedms_jax.simulation.accounting import Books, InFlight
from fedms_jax.simulation.importance import block_importance
from fedms_jax.simulation.state import (
  Handover,
  Options,
  Preempted,
  Stage,
  StageState,
)
from fedms_jax.simulation.tables import Tables
from fedms_jax.systems.ledger import Entry, Meter


class Simulation:
  """Runs stages over a federation.

  keeper: saves and restores, see `run_store.py`. observer: is called after each
  round and asked whether to stop, see `observer.py`. place: devices and
  processes; None: one device. ledgers: one `Entry` per stage.
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
    self.books = Books(options, self.place.peers, observer)

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
    key = seeds.stream(self.options.seed, seeds.INIT, index)
    roles = compile.jit(light=True)(stage.algorithm.begin)(key, before)
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
        reduction.begin_server(stage.algorithm, roles.shared)
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
    meter = Meter(
      self.backbone,
      stage.algorithm,
      state.roles,
      batch=o.batch_size,
      slots=o.slots,
    )
    met = {int(i) for t in range(state.round) for i in sample(t).ids}
    self.books.begin(stage.algorithm, meter, met)
    self.observer.stage(stage.name, state.round, stage.rounds)
    flight = None
    left = range(state.round, stage.rounds)
    ahead = cohorts.ahead(sample, left, o.prefetch)
    for cohort in timeline.rounds(stage.name, ahead):
      state, dispatched = self._dispatch(state, schedule, store, cohort)
      if flight is not None:
        state = self.books.settle(state, flight)
      flight = dispatched
      with timeline.span('store'):
        self.keeper.after_round(self, state, store)
      stop = self._stop()
      last = cohort.round + 1 == stage.rounds
      due = self.keeper.persistent and state.round % o.checkpoint_every == 0
      if stop or last or due:
        state, flight = self.books.settle(state, flight), None
        with timeline.span('store'):
          self.keeper.save(self, state, store)
        if stop and not (last and state.stage + 1 == len(self.stages)):
          raise Preempted(f'{stage.name}, round {cohort.round + 1}')
    return state

  def _stop(self) -> bool:
    """Whether the run shall save and stop; all processes decide the same."""
    if self.place.peers.processes > 1:
      return self.books.stopping
    return self.observer.stop_requested()

  def _planned(self, state: StageState, schedule, cohort):
    """The state with what the schedule has seen, and the clients' plans."""
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
    state = state._replace(
      progress=progress, late=late, ever=ever, last=max(active, key=sum)
    )
    return state, plans

  def _dispatch(self, state: StageState, schedule, store, cohort):
    """Starts a round: the state after it, and what is still in flight."""
    start = time.perf_counter()
    algorithm = self.stages[state.stage].algorithm
    state, plans = self._planned(state, schedule, cohort)
    own = self.place.mine(cohort.ids, self.federation.train.num_clients)
    with timeline.span('load'):
      personal = store.gather(cohort.ids[own])
    key = seeds.stream(
      self.options.seed, seeds.CLIENT, state.stage, cohort.round
    )
    needed = [cohort.rows[own].ravel(), cohort.validation[own].ravel()]
    before = self.tables.derived_rows
    whole = self.plan(state)
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
    derived = self.tables.derived_rows - before
    record = {
      'stage': self.stages[state.stage].name,
      'round': cohort.round,
      'depth': float(np.mean([sum(p.active) for p in plans])),
      'active': sum(1 << b for b, on in enumerate(state.ever) if on),
      'clients': len(cohort.ids),
      'padding_efficiency': planner.padding_efficiency(
        cohort.steps, chunks, how
      ),
      'started': start,
    }
    version = self.version(state) + 1
    with timeline.span('store'):
      for chunk in chunks:
        count = len(chunk.places)
        kept = jax.tree.map(lambda x, n=count: x[:n], chunk.personal)
        store.scatter(cohort.ids[chunk.places], kept, version)
    state = state._replace(round=cohort.round + 1, roles=roles, server=server)
    return state, InFlight(
      cohort,
      plans,
      state.ever,
      derived,
      self.tables.scope,
      chunks,
      validation,
      measured,
      record,
    )
