"""The words of the project: data, models and tasks. What clients and the server
say to each other is in `contract.py`.

Axis letters: K clients in a cohort, N clients in the population, M rows of
the table, S local steps, B batch, T tokens, D width, C classes, E experts,
R LoRA rank, L blocks.

A *role tree* is a dict. Its keys that end in `blocks` hold trees stacked over
the L transformer blocks, of which only the active rows train; its other keys
are always active.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedms_jax.core.costs import BackboneCost

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


class Outputs(NamedTuple):
  """What a head gives where that is not a score for each label.

  kind: 'tags', 'levels' or 'values', see `Task.kind`. names: of the outputs
  that are trained. center, spread: of values, one for each output: what the
  data has is center + spread * value. () of others.
  """

  kind: str
  names: tuple[str, ...]
  center: tuple[float, ...] = ()
  spread: tuple[float, ...] = ()


class Table(NamedTuple):
  """The examples of all clients and of the server, one row each.

  columns: 'inputs' (uint8 [M, H, W, 3 or 1] images or int32 [M, T] tokens),
  'labels' (int32 [M]); of some tasks 'targets' (int32 [M, T], the tokens that
  are learned), 'texts' (int32 [M, T], captions of images), 'values' (float32
  [M, C], numbers to predict, in units of their spread) or 'tags' (uint8 [M, C],
  which of C tags a row has). Negative tokens are padding. Derived columns join
  them on the device. 'labels', 'values' and 'tags' are arrays; the others may
  be lazy (`data/lazy.py`), to be read by row numbers.

  label_names: of the labels; where values or tags are learned, labels are
  strata of them, by which rows are dealt. outputs: of the head; None: one for
  each label.
  """

  columns: dict[str, Any]
  label_names: tuple[str, ...]
  outputs: Outputs | None = None

  @property
  def output_names(self) -> tuple[str, ...]:
    """The names of what a linear head gives."""
    return self.outputs.names if self.outputs else self.label_names


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


class Sampling(NamedTuple):
  """How the cohorts of a stage are drawn: what everybody may know of it.

  kind: 'fixed' (always `size` of all clients), 'poisson' (each client by
  itself, with the chance size / clients), 'cyclic' (so, of the group of
  clients whose turn it is), 'min_separation' (always `size` of that group).
  clients: N. size: K, or of random cohorts the mean of K. cap: the most
  clients of a cohort, of which a larger one keeps a random part. groups:
  among which all clients are dealt. draw: of 'own', see `sampling.Draw`.
  """

  kind: str
  clients: int
  size: int
  cap: int
  groups: int = 1
  draw: Callable[..., Any] | None = None

  @property
  def chance(self) -> float:
    """That a client is in a cohort for which it may be drawn."""
    return min(1.0, self.size * self.groups / self.clients)

  @property
  def random(self) -> bool:
    """Whether the number of clients in a cohort is random."""
    return self.kind in ('poisson', 'cyclic')


class Public(NamedTuple):
  """What everybody may know of a round before it is run.

  clients: how many are expected to report, float32. holders: by key of the
  shared tree how many of them are expected to train it, [L] or a scalar.
  """

  clients: Any
  holders: dict[str, Any]


class Federation(NamedTuple):
  """Everything the simulator knows of the data.

  train, validation, test: of the clients that train, disjoint. unseen: test
  rows of clients that never train. pooled: int32 row numbers of the pooled
  test set. public: int32 row numbers that the server pre-trains on. names: of
  the clients that train, where the data names them; () else. dealt: the name of
  the partitioner; '' if it has none, or the rows were divided elsewhere.
  """

  table: Table
  train: Partition
  validation: Partition
  test: Partition
  unseen: Partition
  pooled: np.ndarray
  public: np.ndarray
  names: tuple[str, ...] = ()
  dealt: str = ''


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
  takes pairs (weights, parameters of the adapter or None) in its spans. logits
  reads no blocks, and of features by token each token by itself; once:
  ((params, head), features) -> (params, head) that give the same logits, of
  which nothing is converted at each call. reads: how many tokens, the first
  ones, `features` reads of what `run` gives; `run` then takes this number and
  gives no others. None: all.
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
  once: Callable[[Tree, Any], Tree] = lambda whole, x: whole
  reads: int | None = None

  def adapted(self, adapter: Adapter) -> Backbone:
    """The same with an adapter, whose parameters `run` then applies."""
    return self._replace(run=functools.partial(self.run, adapter=adapter))

  def whole(self) -> Backbone:
    """The same, which computes all of its last block, and costs that."""
    return self._replace(reads=None, cost=self.cost.whole())

  def featured(self, params: Tree, spans, x, mask):
    """Features of x [B, T, D]: `run` to the last block, then `features`."""
    known = {} if self.reads is None else {'reads': self.reads}
    return self.features(params, self.run(spans, x, mask, **known), mask)


class Passes(NamedTuple):
  """What a step runs above the frozen prefix: towers with a backward pass,
  towers without, and whether the frozen ones' weights train as well.

  again: further passes without a backward pass, in each step, above the
  prefix. beside: shapes of the roles -> FLOPs that do not grow with the
  examples, of a step and of a client's round; None: none. ahead: frozen towers
  of the derived columns that no step reads. fresh: towers that a row of
  `Start.fresh` takes, of which all but one are frozen. queries: losses of each
  row that a step asks for in place of a gradient.
  """

  trained: int = 1
  frozen: int = 0
  full: bool = False
  again: int = 0
  beside: Callable[[Roles], tuple[float, float]] | None = None
  ahead: int = 0
  fresh: int = 0
  queries: int = 0


class Crossing(NamedTuple):
  """What passes between a client and the server in every local step, as in
  split learning.

  up, down: bytes of one example. messages: of a step, both ways together.
  held: which blocks the client computes; the others are the server's.
  """

  up: float
  down: float
  messages: float
  held: ActiveSet


class Task(NamedTuple):
  """What is learned, one number per example.

  loss, score: logits, batch -> (values [B], weights [B]); a mean is
  sum(values * weights) / sum(weights), and padding weighs 0. Of scores the
  higher is better. perplexity: exp(loss) is what people read. within_batch:
  the logits of a row compare it with the other rows of its batch. kind: what
  logits are scores of: 'classes', 'levels' (classes in an order), 'tags' (any
  number of which are right), 'values' (numbers), 'tokens', 'patches', or
  'pairs'. together: of tasks of tokens: (sequence of `TokenLogits`, batch) ->
  (loss, [(loss, score) of each]) in one pass; the first loss is all of them
  added up, and through it alone a gradient passes. hide: (batch, key) -> the
  batch as the model sees it, where some of each row is hidden and to be found,
  with 'hidden', bool [B, n]: which. It is drawn by the key, or by the row alone
  where the key is None, as `loss` and `score` do with batches of which nothing
  is hidden yet; None: rows are seen as they are.
  """

  name: str
  loss: Callable[[Any, Batch], tuple[Any, Any]]
  score: Callable[[Any, Batch], tuple[Any, Any]]
  perplexity: bool = False
  within_batch: bool = False
  kind: str = 'classes'
  together: Callable[[Sequence[Any], Batch], tuple[Any, list]] | None = None
  hide: Callable[[Batch, Any], Batch] | None = None
