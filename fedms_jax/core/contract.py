"""The contract between clients, the server and the engine: a client begins with
a `Start`, takes local steps, and sends a `Message`; the engine puts it through
the `Channel`; the `Server` makes of all that it has `Received` the roles of the
next round. An `Algorithm` is a value made of these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from fedms_jax.core.costs import BackboneCost
from fedms_jax.core.types import (
  ActiveSet,
  Backbone,
  Batch,
  Crossing,
  Mask,
  Passes,
  Plan,
  Public,
  Roles,
  Task,
  Tree,
)
from fedms_jax.core.wire import Wire


class Moment(NamedTuple):
  """When a local step is taken; scalars.

  round: of the stage. step: of the client in this round, from 0. steps: how
  many the client takes. clock: local steps of the run before this one, for
  learning rates that follow a schedule. rates: learning rates by name, float32,
  of optimizers that are made without: so runs that differ in them share
  programs; {}: there are none.
  """

  round: Any = 0
  step: Any = 0
  steps: Any = 0
  clock: Any = 0
  rates: Mapping[str, Any] = {}


class Start(NamedTuple):
  """What a client has when its round begins.

  roles: at the start of the round. plan: static. public: rows that all have;
  None: there are none. prepared: what the update has made of all this for its
  steps (see `client.sgd`). fresh: rows [F, ...] of `Clients.fresh` with their
  derived columns, 'mask' [F] and 'number' [F]; None: there are none.
  """

  roles: Roles
  plan: Plan
  moment: Moment = Moment()
  public: Batch | None = None
  prepared: Tree = None
  fresh: Batch | None = None

  def at(self, roles: Roles) -> Start:
    """The same start with other roles."""
    return self._replace(roles=roles)


class Message(NamedTuple):
  """What a client sends.

  update: the part of the shared tree that trains, after local training; its
  stacked keys hold the active rows [d, ...]. extras: name -> role tree of the
  method's own (control variates, ranks, statistics, seeds and scalars), whose
  stacked keys hold the same rows as those keys of the update. cover: who held
  what: a tree prefix of `update`, whose leaves are broadcast against it from
  the left; None: 1, [d] for stacked keys.
  """

  update: Tree
  extras: dict[str, Tree] = {}
  cover: Tree = None


class Begin(Protocol):
  """The client's state before its first local step."""

  def __call__(self, start: Start, /) -> Tree: ...


class Step(Protocol):
  """One local step.

  Args:
    carry: the client's state.
    start: what the round began with, at the moment of this step.
    batch: at least one row, with 'mask' [B] and the derived columns; with
      'held' [B], whether a row is one of `Start.fresh`, if there are such.
    key: of this step.

  Returns:
    (carry, metrics), metrics of float32 [2] each.
  """

  def __call__(
    self, carry: Tree, start: Start, batch: Batch, key: Any, /
  ) -> tuple[Tree, dict[str, Any]]: ...


class Finish(Protocol):
  """What the client sends, and the whole personal tree that it keeps."""

  def __call__(self, carry: Tree, start: Start, /) -> tuple[Message, Tree]: ...


class ClientUpdate(NamedTuple):
  """Local training of ONE client, in three pure functions.

  sums: names of the metrics that a step reports.
  """

  begin: Begin
  step: Step
  finish: Finish
  sums: tuple[str, ...] = ('loss', 'score')


class ClientResult(NamedTuple):
  """What came of local training. sums: metrics, float32 [2] each."""

  message: Message
  personal: Tree
  sums: dict[str, Any]


class Sender(NamedTuple):
  """Who sends. stale: server steps since the client began, a scalar. id: the
  client's number, uint32. round: of the stage."""

  stale: Any = 0.0
  id: Any = 0
  round: Any = 0


class Received(NamedTuple):
  """What reaches the server: the sum of what clients sent, or all of it apart
  on a leading axis [K, ...].

  update, extras, cover: as in `Message`, with all L blocks, as
  `Server.send` made them. count: messages. stale: the sum of their staleness.
  public: for channels that may look at nothing else; None: it is not known.
  """

  update: Tree
  extras: dict[str, Tree]
  cover: Tree
  count: Any
  stale: Any
  public: Public | None = None


class Context(NamedTuple):
  """What a server's step may draw on. key: the round's; round: of the stage;
  public: rows that the server has, or None."""

  key: Any
  round: Any = 0
  public: Batch | None = None


class Server(NamedTuple):
  """What the server does with messages; its memory is no part of the roles.

  init: (key, roles) -> memory. send: (shared tree at the start, narrowed to
  what trains; message with its cover; the client's weight, float32; sender)
  -> message, what of it is added up or kept apart: it runs at the client, and
  the channel takes all that it gives. reduction: 'sum', or 'stack' for what
  needs clients apart. step: (roles, memory, received, context) -> (roles,
  memory, measured), with whole shared trees, and metrics of the round by name;
  what nobody held stays as it was. Of what is frozen only blocks that have
  been active may change, and the base never. broadcast: memory -> what clients
  see of it, as frozen['server'], on which no column may depend; None: nothing.
  """

  init: Callable[[Any, Roles], Tree]
  send: Callable[[Tree, Message, Any, Sender], Message]
  reduction: Literal['sum', 'stack']
  step: Callable[
    [Roles, Tree, Received, Context], tuple[Roles, Tree, dict[str, Any]]
  ]
  broadcast: Callable[[Tree], Tree] | None = None


class Channel(NamedTuple):
  """What happens between clients and the server, to all that passes.

  init: (key, shapes of a message) -> state, which checkpoints keep. encode:
  (state, message, key of the client, sender) -> message, at the client; its
  sums must be those that decode expects. decode: (state, received, key) ->
  (state, received), at the server; noise and release live here. bytes: (state,
  bytes of a plain message) -> bytes that a client sends. event: what the
  accountant counts, None: no release. measure: state after a round -> metrics
  of the round by name; None: nothing. wire: what few channels do. The key of
  decode is of a stream of its own. What encode makes of a client that only
  fills a chunk is dropped.
  """

  init: Callable[[Any, Message], Tree]
  encode: Callable[[Tree, Message, Any, Sender], Message]
  decode: Callable[[Tree, Received, Any], tuple[Tree, Received]]
  bytes: Callable[[float], float]
  event: Any = None
  measure: Callable[[Tree], dict[str, Any]] | None = None
  wire: Wire = Wire()


def identity() -> Channel:
  """The channel that changes nothing."""
  return Channel(
    init=lambda key, message: (),
    encode=lambda state, message, key, sender: message,
    decode=lambda state, received, key: (state, received),
    bytes=lambda size: size,
  )


# One object, so that algorithms without another one share compiled programs.
PLAIN = identity()


class Clients(NamedTuple):
  """The clients of a chunk, on a leading axis K.

  ids: uint32 [K]. personal: [K, ...]. rows: int32 [K, S, B], -1 is padding.
  weights: float32 [K]; 0 for a client that only fills the chunk. fresh: int32
  [K, F], rows beside those of the steps, see `Stage.fresh`; None: none. stale:
  float32 [K], server steps since each began; None: 0.
  """

  ids: Any
  personal: Tree
  rows: Any
  weights: Any
  fresh: Any = None
  stale: Any = None


class Work(NamedTuple):
  """What a chunk does in a round, beside its clients.

  table: columns [M, ...]. key: of the round. moment: of its first step.
  channel: the state of the channel.
  """

  table: dict[str, Any]
  key: Any
  moment: Moment = Moment()
  channel: Tree = ()


class Prediction(NamedTuple):
  """logits: name of a model -> its logits. stats: name -> [B], to be
  averaged over examples."""

  logits: dict[str, Any]
  stats: dict[str, Any]


class Algorithm(NamedTuple):
  """One federated algorithm: a value made of pure functions.

  backbone: whose blocks a schedule activates. begin: (key, roles of the stage
  before) -> roles; personal is one client's.
  columns: (roles, batch, plan) -> derived columns of a raw batch, which may
  hold what `deeper` gives of them at the plan's boundary already; they depend
  on frozen values alone (roles.personal is not given). derived: names among
  them that are there exactly if all are. update: local training. predict:
  (roles, batch, plan) -> Prediction, for whole trees.
  server: what is sent, and what becomes of it. masks: plan -> which leaves of
  shared and of personal are trainable. served: the prediction that users are
  served with; its score drives the schedule. passes: for the ledger.

  The rest may be left out. models: whole roles -> the models that `predict`
  names, for `fedms export`: 'global' of all clients, 'local' of the one whose
  roles they are. Each has some of 'base' (if it is trained), 'blocks' (LoRA
  [L, ...], with what is dense beside it) and 'head', or parts of its own.
  variant: (round, client) -> what else is static of a client's training, such
  as its rank, for `Plan.variant`; clients of one variant are compiled together.
  traffic: (shapes of the roles, plan, blocks ever active, clients in the
  cohort) -> bytes that one client sends and receives in a round; None: what it
  trains, and what of shared may have changed. crossing: (shapes of the roles,
  plan) -> what passes in each step beside that; None: nothing. public: rows of
  the public set that the server's step gets in a round, drawn anew in each, as
  `Context.public`. held: (shapes of the roles, plan) -> those that a client's
  device has, and the plan on the blocks that it has, for the ledger; None: all.
  channel: set by whoever builds the stage, never by a method. stats: names of
  `Prediction.stats` that a round reports, of validation rows. deeper: (roles,
  raw and derived columns of the boundary `low`, low, high) -> those that are
  others at `high`, above it. cost: plan -> what the backbone costs a client of
  it, for the ledger; None: the same in all variants.
  """

  name: str
  backbone: Backbone
  task: Task
  begin: Callable[[Any, Roles], Roles]
  columns: Callable[[Roles, Batch, Plan], Batch]
  derived: tuple[str, ...]
  update: ClientUpdate
  predict: Callable[[Roles, Batch, Plan], Prediction]
  server: Server
  masks: Callable[[Plan], tuple[Mask, Mask]]
  served: str
  passes: Passes
  models: Callable[[Roles], dict[str, Tree]] = lambda roles: {}
  variant: Callable[[int, int], Hashable] | None = None
  traffic: (
    Callable[[Roles, Plan, ActiveSet, int], tuple[float, float]] | None
  ) = None
  crossing: Callable[[Roles, Plan], Crossing] | None = None
  public: int = 0
  held: Callable[[Roles, Plan], tuple[Roles, Plan]] | None = None
  channel: Channel = PLAIN
  stats: tuple[str, ...] = ()
  deeper: Callable[[Roles, Batch, int, int], Batch] | None = None
  cost: Callable[[Plan], BackboneCost] | None = None
