"""The state of a simulation between two rounds, and what a run is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.contract import Algorithm
from fedms_jax.core.metrics import Metric
from fedms_jax.core.types import ActiveSet, Federation, Roles, Tree
from fedms_jax.schedules import Schedule
from fedms_jax.simulation.stopping import Stop
from fedms_jax.systems.arrivals import Arrivals
from fedms_jax.systems.ledger import Entry


class Handover(NamedTuple):
  """What a schedule may know when its stage begins: the last active set of
  the stage before (None for the first), the importance of each block,
  measured on demand, and how many validation rows a score rests on. rounds:
  that the stage has. before: rounds of the stages before. trigger: what the
  schedule of the stage before has come to, see `Schedule.told`. sizes: rows
  that each client trains on, int [N]."""

  active: ActiveSet | None
  importance: Callable[[], list[float]]
  rows: int
  rounds: int = 0
  before: int = 0
  trigger: Any = None
  sizes: Any = ()


Fresh = Callable[[Federation, np.ndarray, int], np.ndarray]


class Guard(NamedTuple):
  """What keeps a stage's clients private, beside the channel.

  clients: N. expected: how many are expected to report in a round; 0:
  nobody asks what is public of it. alike: in a round all clients have the same
  plan, so that one tells those of all. spend: (what was released before, ids
  [K] and local steps [K] of a cohort) -> what is released with it, as JSON.
  score: (sums [K, 2] of what a cohort reports, round) -> the score that the
  schedule sees, for cohorts of nobody, too; None: the mean of the reports.
  """

  clients: int
  expected: float
  alike: bool
  spend: Callable[[Any, np.ndarray, np.ndarray], Any]
  score: Callable[[np.ndarray, int], float] | None = None


class Stage(NamedTuple):
  """A number of rounds of one algorithm under one schedule.

  probe: the algorithm whose first dense gradient step measures the importance
  of blocks; None: `algorithm` itself. arrivals: who reports when; None: the
  sampled cohorts, all of them. view: the rows that the stage trains and scores
  on, of those of the run; row numbers stay; None: all. carry: (a client's
  personal tree of the stage before, the one that this stage begins with) ->
  its personal tree when it first takes part; None: the latter. fresh: (data,
  ids [K], round) -> rows int32 [K, F] that clients get beside those that they
  train on, -1 is padding, F the same in all rounds; None: none. open: its
  number of rounds may be another one, see `Schedule.over`: what one stage
  leaves of its rounds, the next one has. guard: of a private
  run; None: nothing is accounted. central: whether its one client is the
  server, whose rows are the public ones. local: fields of `Options` that are
  others in this stage. series: stages of one series go on where the last of
  them ended: with its clock, the server's memory and the clients' states; '':
  the stage is alone. rebased: whether the base model is what stages before have
  made, so that checkpoints hold it.
  """

  name: str
  algorithm: Algorithm
  rounds: int
  schedule: Callable[[Handover], Schedule]
  probe: Algorithm | None = None
  arrivals: Arrivals | None = None
  view: Callable[[Federation], Federation] | None = None
  carry: Callable[[Tree, Tree], Tree] | None = None
  fresh: Fresh | None = None
  open: bool = False
  guard: Guard | None = None
  central: bool = False
  local: Mapping[str, Any] = {}
  series: str = ''
  rebased: bool = False

  @property
  def folder(self) -> str:
    """What the clients' states of the stage are kept under."""
    return self.series or self.name


class Curve(NamedTuple):
  """Scores on test rows during a run: every so many rounds of a stage, and
  after its last; 0: never. clients: at most so many, always the same. readers:
  of these, whose models read the pooled set, at most. mixed: see
  `evaluation.Scope`."""

  every: int = 0
  clients: int = 50
  readers: int = 200
  mixed: float = 0.0


class Options(NamedTuple):
  """How a simulation runs; see the flags of the same names.

  sampling, cap, groups: see `sampling.sampling`. row_cap: rows come into a step
  by chance, and at most so many, see `private_rows.batches`; 0: in shuffled
  epochs. dropout: the share of sampled clients that are lost. reports: how many
  clients' newest scores the schedule's score averages; 0: the cohort's alone.
  unroll: local steps per program where clients run one by one. memory: bytes
  that the device is to be taken to have; 0: what it has. personal: bytes for
  personal states on it, see `recent.kept`. budget: bytes for
  columns on the device; 0: a share of what is free. host_budget: bytes for
  derived columns in host memory; 0: half of what is free. block: rows derived
  together. slots: optimizer arrays per trained parameter, for the ledger.
  score: what the schedule watches: 'validation', 'train_accuracy',
  'train_loss', or a metric on validation rows. validate_every: rounds between
  validations that nobody waits for. metrics: of test rows. stop: what ends a
  stage early; None: nothing. total: local steps of the stage, of which the last
  round takes what is left; 0: `steps` in each round. weights: what the mean
  over clients weighs: their 'rows', their 'tokens', or clients 'equal'. rates:
  see `Moment.rates`.
  """

  seed: int = 0
  cohort: int = 10
  sampling: str | Callable = 'fixed'
  cap: int = 0
  groups: int = 1
  row_cap: int = 0
  dropout: float = 0.0
  batch_size: int = 16
  epochs: int = 1
  steps: int = 0
  clients: str = 'auto'
  chunk: int = 0
  unroll: int = 1
  memory: float = 0.0
  personal: float = 0.0
  scope: str = 'auto'
  place: str = 'auto'
  budget: float = 0.0
  host_budget: float = 0.0
  block: int = 256
  prefetch: bool = True
  validation_rows: int = 64
  score: str | Metric = 'validation'
  reports: int = 0
  validate_every: int = 1
  metrics: tuple[Metric, ...] = ()
  curve: Curve = Curve()
  stop: Stop | None = None
  on_nan: str = 'stop'
  slots: int = 0
  total: int = 0
  weights: str = 'rows'
  rates: Mapping[str, float] = {}


class Flying(NamedTuple):
  """Clients in flight that began with the model of one server step.

  clock: see `Moment`, when they began. ever: blocks that were active by then,
  theirs among them. plans: what is active of each, by id. shared, seen: what
  they have got of the shared tree and of the server's memory; None where it is
  known that their reports will be thrown away.
  """

  clock: int
  ever: ActiveSet
  plans: dict[int, ActiveSet]
  shared: Tree = None
  seen: Tree = None


class Past(NamedTuple):
  """Where a series of stages stands: its clock, and the server's memory."""

  clock: int
  memory: Tree = ()


class StageState(NamedTuple):
  """Where a stage stands, between two rounds.

  round: the next one. clock: local steps of the series so far, the longest
  client's of each round; stages that are in none share one clock. memory,
  channel: of the server and of the channel.
  progress, arrivals: states of the schedule and of the arrivals. met: which
  clients have received the model in this stage, bool [N]. reports: newest
  sums that the score is made of, of clients by id. ever: blocks that have been
  active.
  inherited, last: last active set of the stage before, and of this one so far.
  importance: block scores, once measured. ledger: of this stage. watch: of
  `stopping`. done: rounds of each stage before. spent: what all stages so far
  have released, by their guards; None: nobody counts. past: of the series of
  earlier stages, by name. flying: clients in flight, by the step whose model
  they began with.
  """

  stage: int
  round: int
  clock: int
  roles: Roles
  memory: Tree
  channel: Tree
  progress: Any
  arrivals: Any
  met: np.ndarray
  reports: dict[int, tuple[float, ...]]
  ever: ActiveSet
  inherited: ActiveSet | None
  last: ActiveSet | None
  importance: list[float] | None
  ledger: Entry
  watch: Any
  done: tuple[int, ...]
  spent: Any = None
  past: dict[str, Past] = {}
  flying: dict[int, Flying] = {}


class NonFiniteError(ValueError):
  """A client's update was not finite."""


class Preempted(Exception):
  """The run was asked to stop; its state is saved."""
