"""The words of the project: the types that every layer speaks in.

Axis letters: K clients in a cohort, N clients in the population, M rows of
the table, S local steps, B batch, T tokens, D width, C classes, E experts,
R LoRA rank, L blocks.

A *role tree* is a dict. Its keys that end in `blocks` hold trees stacked over
the L transformer blocks, of which only the active rows train; its other keys
are always active.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

Tree = Any  # a pytree of arrays
Batch = dict[str, Any]  # column name -> [B, ...], and 'mask' [B]
ActiveSet = tuple[bool, ...]  # one entry per block: does its LoRA train?
# What of a role tree trains: the same blocks of all its stacked keys, or by
# top-level key the blocks (True: all of it; False: nothing).
Mask = ActiveSet | dict[str, ActiveSet | bool]


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
  variant: Hashable = None


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
  """

  offsets: np.ndarray
  rows: np.ndarray

  @property
  def num_clients(self) -> int:
    return len(self.offsets) - 1

  def sizes(self) -> np.ndarray:
    """Rows of each client, int64 [N]."""
    return np.diff(self.offsets)

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


class Backbone(NamedTuple):
  """A foundation model as pure functions of its parameters.

  blocks, width: L and D. params: {'stem', 'blocks' [L, ...], 'final'}.
  """

  blocks: int
  width: int
  lora_scale: float
  init: Callable[[Any], Tree]  # key -> params
  embed: Callable[[Tree, Any], Any]  # params, inputs [B, ...] -> [B, T, D]
  mask: Callable[[Any], Any]  # inputs [B, ...] -> bool [B, T] or None
  run: Callable[..., Any]  # spans, x [B, T, D], mask -> x [B, T, D]
  features: Callable[..., Any]  # params, x, mask -> [B, D] (or [B, T, D])
  init_head: Callable[[Any], Tree]  # key -> head
  logits: Callable[[Tree, Tree, Any], Any]  # params, head, features -> [B, C]
  cost: BackboneCost


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


class ClientResult(NamedTuple):
  """What one client returns.

  shared: the trainable part of the shared tree after local training.
  personal: the whole personal tree. sums: metrics, float32 [2] each.
  """

  shared: Tree
  personal: Tree
  sums: dict[str, Any]


class ClientUpdate(NamedTuple):
  """Local training of ONE client, in three pure functions.

  sums: names of the metrics that a step reports, float32 [2] each.
  begin: (roles, plan) -> carry. step: (carry, roles, batch, key, plan) ->
  carry, one local step on a batch with at least one row. finish: (carry,
  roles, plan) -> ClientResult. `roles` holds the state at the start of the
  round; batches carry 'mask' [B], the derived columns, and 'progress', the
  share of the client's steps that came before this one, a scalar in [0, 1).
  """

  begin: Callable[..., Tree]
  step: Callable[..., Tree]
  finish: Callable[..., ClientResult]
  sums: tuple[str, ...] = ('loss', 'score')


class Aggregator(NamedTuple):
  """How the server merges what clients send.

  contribute: (before, after, weight) -> tree, one client's contribution;
  trees hold the trainable part only, and keys that end in `blocks` stay
  stacked. reduction: 'sum' adds the contributions of all clients, 'stack'
  keeps them apart on a leading axis [K, ...] for order statistics. A
  contribution may have keys of its own beside those of the shared tree.
  merge: (before, total, weights) -> after, whole shared trees; `weights` has
  the contributions' top-level keys, each the summed weight ([L] for stacked
  keys, a scalar for others; with a leading K for 'stack'). What nobody held
  active (weight 0) is restored by the round, whatever `merge` returns.
  measure: (before, total, weights) -> scalars by name, for the metrics of the
  round; None: nothing.
  """

  contribute: Callable[[Tree, Tree, Any], Tree]
  reduction: str
  merge: Callable[[Tree, Tree, Tree], Tree]
  measure: Callable[[Tree, Tree, Tree], dict[str, Any]] | None = None


class Work(NamedTuple):
  """What a step runs above the frozen prefix: towers with a backward pass,
  towers without, and whether the frozen ones' weights train as well.

  beside: shapes of the roles -> FLOPs that do not grow with the examples, of a
  step and of a client's round; None: none.
  """

  trained: int = 1
  frozen: int = 0
  full: bool = False
  beside: Callable[[Roles], tuple[float, float]] | None = None


class Prediction(NamedTuple):
  """logits: name of a model -> its logits. stats: name -> [B], to be
  averaged over examples."""

  logits: dict[str, Any]
  stats: dict[str, Any]


class Algorithm(NamedTuple):
  """One federated algorithm: a value made of pure functions.

  begin: (key, roles of the stage before) -> roles; personal is one client's.
  columns: (roles, batch, plan) -> derived columns of a raw batch; they depend
  on frozen values alone (roles.personal is not given). derived: names among
  them that are there exactly if all are. update: local training. predict:
  (roles, batch, plan) -> Prediction, for whole trees.
  server: turns the mean update into a step. masks: plan -> what trains of
  shared and of personal. served: the prediction that users are served with;
  its score drives the schedule. work: for the ledger.

  The rest may be None. models: whole roles -> what has become of the models
  that `predict` names, for `fedms export`: 'global' of all clients, 'local' of
  the one whose roles they are. Each has some of 'base' (if it is trained),
  'blocks' (LoRA [L, ...], with what is dense beside it) and 'head', or parts of
  the method's own. variant:
  (round, client) -> what else is static of a client's training, such as its
  rank, for `Plan.variant`; clients of one variant are compiled together.
  fold: (roles after the server's step, its totals and weights, key) -> roles,
  for methods that write into what is frozen; only blocks that have been
  active may change, and the base never. traffic: (shapes of the roles, plan,
  blocks ever active, clients in the cohort) -> bytes that one client sends
  and receives in a round; None: what it trains, and what of shared may have
  changed.
  """

  name: str
  task: Task
  begin: Callable[[Any, Roles], Roles]
  columns: Callable[[Roles, Batch, Plan], Batch]
  derived: tuple[str, ...]
  update: ClientUpdate
  predict: Callable[[Roles, Batch, Plan], Prediction]
  aggregator: Aggregator
  server: Any  # optax.GradientTransformation
  masks: Callable[[Plan], tuple[Mask, Mask]]
  served: str
  work: Work
  models: Callable[[Roles], dict[str, Tree]] | None = None
  variant: Callable[[int, int], Hashable] | None = None
  fold: Callable[[Roles, Tree, Tree, Any], Roles] | None = None
  traffic: (
    Callable[[Roles, Plan, ActiveSet, int], tuple[float, float]] | None
  ) = None
