"""The words of the project: the types that every layer speaks in.

Axis letters: K clients in a cohort, N clients in the population, M rows of
the table, S local steps, B batch, T tokens, D width, C classes, E experts,
R LoRA rank, L blocks.

A *role tree* is a dict. Its keys that end in `blocks` hold trees stacked over
the L transformer blocks, of which only the active rows train; its other keys
are always active.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

Tree = Any  # a pytree of arrays
Batch = dict[str, Any]  # column name -> [B, ...], and 'mask' [B]
ActiveSet = tuple[bool, ...]  # one entry per block: does its LoRA train?
# What of a role tree trains: the same blocks of all its stacked keys, or by
# top-level key the blocks (True: all of it; False: nothing).
Mask = ActiveSet | Mapping[str, ActiveSet | bool]


class Roles(NamedTuple):
  """All parameters of an algorithm, split by who has them.

  frozen: same for all, no gradient. shared: averaged by the server.
  personal: of one client (inside a client) or stacked `[K, ...]` (outside).
  """

  frozen: Tree
  shared: Tree
  personal: Tree


class Span(NamedTuple):
  """A run of consecutive blocks `[start, stop)` and their `[stop - start,
  ...]` parameters."""

  start: int
  stop: int
  params: Tree


class Plan(NamedTuple):
  """What is static in a round: compiled code depends on nothing else.

  active: one bool per block. boundary: the first block that is not part of
  the frozen prefix, the lowest block that has ever been active. variant: what
  `Algorithm.variant` says of a client in a round; None: the whole model.
  """

  active: ActiveSet
  boundary: int
  variant: Any = None  # hashable


class Table(NamedTuple):
  """The examples of all clients and of the server, one row each.

  columns: 'inputs' (uint8 [M, H, W, 3 or 1] images or int32 [M, T] tokens),
  'labels' (int32 [M]); of some tasks 'targets' (int32 [M, T], the tokens that
  are learned) or 'texts' (int32 [M, T], captions of images). Negative tokens
  are padding. Derived columns join them on the device. 'labels' is an array;
  the others may be lazy (`data/lazy.py`), to be read by row numbers.
  """

  columns: dict[str, Any]
  label_names: tuple[str, ...]


class Partition(NamedTuple):
  """Who has which rows, as two arrays: client k has
  `rows[offsets[k]:offsets[k + 1]]`.

  offsets: int64 [N + 1]. rows: int32 [sum of sizes], row numbers of the table.
  since, until: int32 [sum of sizes], the rounds [since, until) in which a row
  exists; None: in all of them.
  """

  offsets: np.ndarray
  rows: np.ndarray
  since: np.ndarray | None = None
  until: np.ndarray | None = None

  @property
  def num_clients(self) -> int:
    return len(self.offsets) - 1

  def sizes(self) -> np.ndarray:
    """Rows of each client, int64 [N]."""
    return np.diff(self.offsets)

  def at(self, round: int) -> Partition:
    """What there is in a round, as a partition without time."""
    if self.since is None and self.until is None:
      return self
    here = np.ones(len(self.rows), bool)
    if self.since is not None:
      here &= self.since <= round
    if self.until is not None:
      here &= round < self.until
    before = np.concatenate([[0], np.cumsum(here)])
    return Partition(before[self.offsets], self.rows[here])

  def of(self, client: int) -> np.ndarray:
    """Row numbers of one client."""
    return self.rows[self.offsets[client] : self.offsets[client + 1]]


class Federation(NamedTuple):
  """Everything the simulator knows of the data.

  train, validation, test: of the clients that train, disjoint. unseen: test
  rows of clients that never train. pooled: int32 row numbers of the pooled
  test set. public: int32 row numbers that the server pre-trains on.
  """

  table: Table
  train: Partition
  validation: Partition
  test: Partition
  unseen: Partition
  pooled: np.ndarray
  public: np.ndarray


class BackboneCost(NamedTuple):
  """What one example costs in a backbone, from shapes alone.

  stem, block, head: forward FLOPs (a multiply-add counts 2) of the stem, of
  one block without LoRA, and of the head. tokens: T. activation: bytes that
  one block keeps for the backward pass.
  """

  stem: float
  block: float
  head: float
  tokens: int
  activation: float


class Adapter(Protocol):
  """What is trained beside the frozen layers of a block, such as LoRA."""

  @property
  def where(self) -> tuple[str, ...]:
    """The layers that it is beside, by their path in a block: `attn/q`."""
    ...

  def init(self, key, blocks: Tree) -> Tree:
    """Fresh parameters by layer, stacked [L, ...], with which the model is as
    it was. blocks: stacked arrays or shapes of the model's own.

    Raises:
      ValueError: the blocks have no such layers, or not of such a size.
    """
    ...

  def apply(self, params: Tree, x, y) -> Any:
    """What comes out of one layer of one block: [..., d_out], where `y` would
    without the adapter. params: of this layer and block. x: [..., d_in], what
    goes in."""
    ...


class Backbone(NamedTuple):
  """A foundation model as pure functions of its parameters.

  blocks, width: L and D. params: {'stem', 'blocks' [L, ...], 'final'}. run
  takes pairs (weights, parameters of the adapter or None) in its spans.
  """

  blocks: int
  width: int
  init: Callable[[Any], Tree]  # key -> params
  embed: Callable[[Tree, Any], Any]  # params, inputs [B, ...] -> [B, T, D]
  mask: Callable[[Any], Any]  # inputs [B, ...] -> bool [B, T] or None
  run: Callable[..., Any]  # spans, x [B, T, D], mask, adapter -> x [B, T, D]
  features: Callable[..., Any]  # params, x, mask -> [B, D] (or [B, T, D])
  init_head: Callable[[Any], Tree]  # key -> head
  logits: Callable[[Tree, Tree, Any], Any]  # params, head, features -> [B, C]
  cost: BackboneCost

  def adapted(self, adapter: Adapter) -> Backbone:
    """The same with an adapter, whose parameters `run` then applies."""
    return self._replace(run=functools.partial(self.run, adapter=adapter))


class Task(NamedTuple):
  """What is learned, one number per example.

  loss, score: logits, batch -> (values [B], weights [B]); a mean is
  sum(values * weights) / sum(weights), and padding weighs 0. Of scores the
  higher is better. perplexity: exp(loss) is what people read. within_batch:
  the logits of a row compare it with the other rows of its batch.
  """

  name: str
  loss: Callable[[Any, Batch], tuple[Any, Any]]
  score: Callable[[Any, Batch], tuple[Any, Any]]
  perplexity: bool = False
  within_batch: bool = False


class Moment(NamedTuple):
  """When a local step is taken; scalars.

  round: of the stage. step: of the client in this round, from 0. steps: how
  many the client takes. clock: local steps of the run before this one, for
  learning rates that follow a schedule.
  """

  round: Any = 0
  step: Any = 0
  steps: Any = 0
  clock: Any = 0


class Start(NamedTuple):
  """What a client has when its round begins.

  roles: at the start of the round. plan: static. public: rows that all have;
  None: there are none. prepared: what the update has made of all this for its
  steps (see `client.sgd`).
  """

  roles: Roles
  plan: Plan
  moment: Moment = Moment()
  public: Batch | None = None
  prepared: Tree = None

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
    batch: at least one row, with 'mask' [B] and the derived columns.
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
  """What the server knows of who sends. stale: server steps since the client
  began, a scalar."""

  stale: Any = 0.0


class Received(NamedTuple):
  """What reaches the server: the sum of what clients sent, or all of it apart
  on a leading axis [K, ...].

  update, extras, cover: as in `Message`, with all L blocks, as
  `Server.send` made them. count: messages. stale: the sum of their staleness.
  """

  update: Tree
  extras: dict[str, Tree]
  cover: Tree
  count: Any
  stale: Any


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
  see of it, as frozen['server'], on which no derived column may depend; None:
  nothing.
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
  accountant counts, None: no release.
  """

  init: Callable[[Any, Message], Tree]
  encode: Callable[[Tree, Message, Any, Sender], Message]
  decode: Callable[[Tree, Received, Any], tuple[Tree, Received]]
  bytes: Callable[[float], float]
  event: Any = None


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


class Passes(NamedTuple):
  """What a step runs above the frozen prefix: towers with a backward pass,
  towers without, and whether the frozen ones' weights train as well.

  beside: shapes of the roles -> FLOPs that do not grow with the examples, of a
  step and of a client's round; None: none.
  """

  trained: int = 1
  frozen: int = 0
  full: bool = False
  beside: Callable[[Roles], tuple[float, float]] | None = None


class Clients(NamedTuple):
  """The clients of a chunk, on a leading axis K.

  ids: uint32 [K]. personal: [K, ...]. rows: int32 [K, S, B], -1 is padding.
  weights: float32 [K]; 0 for a client that only fills the chunk.
  """

  ids: Any
  personal: Tree
  rows: Any
  weights: Any


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
  columns: (roles, batch, plan) -> derived columns of a raw batch; they depend
  on frozen values alone (roles.personal is not given). derived: names among
  them that are there exactly if all are. update: local training. predict:
  (roles, batch, plan) -> Prediction, for whole trees.
  server: what is sent, and what becomes of it. masks: plan -> which leaves of
  shared and of personal are trainable. served: the prediction that users are
  served with; its score drives the schedule. passes: for the ledger.

  The rest may be left out. models: whole roles -> what has become of the models
  that `predict` names, for `fedms export`: 'global' of all clients, 'local' of
  the one whose roles they are. Each has some of 'base' (if it is trained),
  'blocks' (LoRA [L, ...], with what is dense beside it) and 'head', or parts of
  the method's own. variant: (round, client) -> what else is static of a
  client's training, such as its rank, for `Plan.variant`; clients of one
  variant are compiled together. traffic: (shapes of the roles, plan, blocks
  ever active, clients in the cohort) -> bytes that one client sends and
  receives in a round; None: what it trains, and what of shared may have
  changed. channel: set by whoever builds the stage, never by a method.
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
  channel: Channel = PLAIN
