"""The ledger of a run: what clients would spend, what the simulator spent.

It counts only what is active. All entries are plain numbers, so that a
checkpoint carries the ledger as JSON.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax

from fedms_jax.core import inner_state, tree
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.costs import BackboneCost
from fedms_jax.core.types import ActiveSet, Plan, Roles, Tree
from fedms_jax.systems import cost


class Entry(NamedTuple):
  """One round, or a sum of rounds: bytes, FLOPs, and counts. step_messages:
  that pass within local steps, see `Crossing`. secagg_bytes: of those up and
  down, which are keys and shares of a secure sum. queries: rows that a model
  was asked for the loss of, in place of a gradient; see `Passes.queries`.
  wasted_flops, wasted_bytes: those of clients that did not report, which are
  part of the others. virtual_time: that passed, where arrivals have a clock."""

  bytes_up: float = 0.0
  bytes_down: float = 0.0
  client_flops: float = 0.0
  simulator_flops: float = 0.0
  client_rounds: int = 0
  examples: float = 0.0
  peak_client_memory: float = 0.0
  peak_client_bytes_up: float = 0.0
  step_messages: float = 0.0
  secagg_bytes: float = 0.0
  queries: float = 0.0
  wasted_flops: float = 0.0
  wasted_bytes: float = 0.0
  virtual_time: float = 0.0

  def wasted(self, down: float, flops: float, up: float) -> Entry:
    """The entry of clients that report nothing, of these shares of what they
    receive, compute and send; the simulator has not trained them."""
    own = self._replace(
      bytes_down=self.bytes_down * down,
      client_flops=self.client_flops * flops,
      bytes_up=self.bytes_up * up,
      simulator_flops=0.0,
    )
    if not up:
      own = own._replace(peak_client_bytes_up=0.0)
    return own._replace(
      wasted_flops=own.client_flops,
      wasted_bytes=own.bytes_down + own.bytes_up,
    )

  def plus(self, other: Entry) -> Entry:
    peaks = ('peak_client_memory', 'peak_client_bytes_up')
    return Entry._make(
      max(a, b) if name in peaks else a + b
      for name, a, b in zip(self._fields, self, other, strict=True)
    )


class Meter:
  """Measures the rounds of one stage.

  slots: optimizer state arrays per trained parameter.
  """

  def __init__(
    self,
    algorithm: Algorithm,
    roles: Roles,
    *,
    batch: int,
    slots: int,
  ):
    self._backbone = algorithm.backbone
    self._algorithm = algorithm
    self._shapes = jax.eval_shape(lambda r: r, roles)
    self._batch = batch
    self._slots = slots
    # A clock asks for each client by itself, and few plans are there.
    self.memory = functools.cache(self.memory)
    self.handover = functools.cache(self.handover)
    self._sent = functools.cache(self._sent)

  def up(self, plan: Plan) -> int:
    """Bytes that one client sends."""
    return tree.nbytes_of(self._shapes.shared, self._algorithm.masks(plan)[0])

  def down(self, ever: ActiveSet) -> int:
    """Bytes that one client receives: what may have changed since it was
    there. On its first round of a stage, `handover` comes with it."""
    mask = self._algorithm.masks(Plan(ever, 0))[0]
    return tree.nbytes_of(self._shapes.shared, mask)

  def traffic(self, plan: Plan, ever: ActiveSet, cohort: int):
    """Bytes that one of `cohort` clients sends and receives in a round."""
    if self._algorithm.traffic is not None:
      return self._algorithm.traffic(self._shapes, plan, ever, cohort)
    return self.up(plan), self.down(ever)

  def _sent(self, plan: Plan, ever: ActiveSet, cohort: int):
    """`traffic` as the channel codes it, with keys and shares."""
    up, down = self.traffic(plan, ever, cohort)
    channel = self._algorithm.channel
    wire = channel.wire
    up = channel.bytes(up)
    if wire.coded is not None:
      up += wire.coded(self._part(plan)) - self.up(plan)
    if wire.coded_down is not None:
      down += wire.coded_down(self._part(Plan(ever, 0))) - self.down(ever)
    return up + wire.keys.early + wire.keys.up, down + wire.keys.down

  def _part(self, plan: Plan) -> Tree:
    """Shapes of what trains of the shared tree."""
    mask = self._algorithm.masks(plan)[0]
    return jax.eval_shape(lambda x: tree.narrow(x, mask), self._shapes.shared)

  def unsent(self, entry: Entry, down: float, flops: float, up: float) -> Entry:
    """An entry of clients that report nothing, see `Entry.wasted`; of a secure
    sum, the keys of those who sent no message have arrived."""
    keys, clients = self._algorithm.channel.wire.keys, entry.client_rounds
    one = entry.wasted(down, flops, up)
    if up:
      return one
    early = clients * keys.early * down
    return one._replace(
      bytes_up=early,
      peak_client_bytes_up=keys.early,
      secagg_bytes=early + clients * keys.down * down,
      wasted_bytes=one.wasted_bytes + early,
    )

  def handover(self) -> int:
    """Bytes of what a stage freezes beyond the base model. What the server
    writes there, into stacked keys or from its memory, is no part of it:
    `traffic` counts that."""
    return sum(
      tree.nbytes(value)
      for name, value in self._shapes.frozen.items()
      if name not in ('base', 'start', 'server') and not tree.is_stacked(name)
    )

  def group(
    self,
    plan: Plan,
    ever: ActiveSet,
    *,
    clients: int,
    newcomers: int,
    cohort: int,
    examples: float,
    steps: float,
    derived: float,
    scope: str,
    fresh: float = 0.0,
  ) -> Entry:
    """The entry of those clients of a cohort that trained under one plan.
    fresh: rows of theirs beside those of the steps."""
    a, b = self._algorithm, self._backbone
    lora = self._lora()
    own = b.cost if a.cost is None else a.cost(plan)
    args = (own, a.passes, self._held(plan)[1], lora)
    up, down = self._sent(plan, ever, cohort)
    beside = self._beside(clients, steps)
    fresh *= bool(a.passes.fresh)
    seen = fresh * cost.fresh_flops(b.cost.whole(), a.passes, plan)
    known = fresh * cost.fresh_flops(b.cost, a.passes, plan, scope)
    entry = Entry(
      bytes_up=float(clients * up),
      bytes_down=float(clients * down + newcomers * self.handover()),
      client_flops=examples * cost.client_flops(*args) + beside + seen,
      simulator_flops=cost.simulator_flops(
        *args, examples=examples, derived=derived, scope=scope
      )
      + beside
      + known,
      client_rounds=clients,
      examples=examples,
      peak_client_memory=self._device_memory(plan),
      peak_client_bytes_up=float(up),
      secagg_bytes=float(clients * sum(a.channel.wire.keys)),
      queries=examples * a.passes.queries,
    )
    if a.crossing is None:
      return entry
    return self._crossed(entry, plan, examples, steps, beside)

  def _crossed(
    self, entry: Entry, plan: Plan, examples: float, steps: float, beside: float
  ) -> Entry:
    """The entry with what passes in each step; clients spend what their own
    blocks cost. (A gradient that they but pass on is not counted.)"""
    assert self._algorithm.crossing is not None
    crossing = self._algorithm.crossing(self._shapes, plan)
    rows = [b for b, held in enumerate(crossing.held) if held]
    own = Plan(
      tuple(plan.active[b] for b in rows), sum(b < plan.boundary for b in rows)
    )
    backbone, passes = self._backbone, self._algorithm.passes
    each = cost.client_flops(backbone.cost, passes, own, self._lora())
    share = len(rows) / len(plan.active)
    trained = self.trained(plan) * share
    total = tree.nbytes(self._shapes) - (1 - share) * self._stacked()
    sent = examples * crossing.up
    return entry._replace(
      bytes_up=entry.bytes_up + sent,
      bytes_down=entry.bytes_down + examples * crossing.down,
      client_flops=examples * each + beside,
      peak_client_memory=self._memory(
        backbone.cost.whole(), own, trained, total - trained
      ),
      peak_client_bytes_up=entry.peak_client_bytes_up
      + sent / max(entry.client_rounds, 1),
      step_messages=steps * crossing.messages,
    )

  def _stacked(self) -> float:
    """Bytes of all that has a row for each block."""
    frozen = self._shapes.frozen
    trees = [self._shapes.shared, self._shapes.personal, frozen]
    trees += [frozen.get(name, {}) for name in ('base', 'start')]
    return float(
      sum(
        tree.nbytes(value)
        for found in trees
        for key, value in found.items()
        if tree.is_stacked(key)
      )
    )

  def scoring(self, rows: float, clients: int, backward: int) -> Entry:
    """The entry of clients that scored all L blocks and sent L floats each: a
    pass forward through the model, and so many back to its first block."""
    blocks, c = self._backbone.blocks, self._backbone.cost
    once = blocks * (c.block + 2 * self._lora()) + 2 * c.head
    spent = rows * (c.stem + once + backward * once)
    sent = 4.0 * blocks
    return Entry(
      bytes_up=clients * sent,
      client_flops=spent,
      simulator_flops=spent,
      peak_client_bytes_up=sent,
    )

  def _beside(self, clients: int, steps: float) -> float:
    """FLOPs that do not grow with the examples."""
    passes = self._algorithm.passes
    if passes.beside is None:
      return 0.0
    step, once = passes.beside(self._shapes)
    return steps * step + clients * once

  def trained(self, plan: Plan) -> int:
    """Bytes of what a client trains under a plan."""
    shared, personal = self._algorithm.masks(plan)
    size = tree.nbytes_of(self._shapes.shared, shared)
    own = inner_state.model(self._shapes.personal)
    return size + tree.nbytes_of(own, personal)

  def _held(self, plan: Plan) -> tuple[Roles, Plan]:
    """What a client's device has: shapes of roles, and the plan on them."""
    if self._algorithm.held is None:
      return self._shapes, plan
    return self._algorithm.held(self._shapes, plan)

  def memory(self, plan: Plan, clients: int = 1) -> float:
    """Peak bytes of a simulator's device that trains so many clients at once;
    they share what is frozen."""
    one, frozen = self._one(self._backbone.cost, plan)
    return one + (clients - 1) * (one - frozen)

  def _device_memory(self, plan: Plan) -> float:
    """Peak bytes of a client's device."""
    return self._one(self._backbone.cost.whole(), plan)[0]

  def _one(self, own: BackboneCost, plan: Plan) -> tuple[float, float]:
    """(peak bytes with one client, those of what is frozen)."""
    trained = self.trained(plan)
    shapes, plan = self._held(plan)
    frozen = tree.nbytes(shapes) - trained
    return self._memory(own, plan, trained, frozen), frozen

  def _memory(
    self, own: BackboneCost, plan: Plan, trained: float, frozen: float
  ) -> float:
    return cost.client_memory(
      own,
      self._algorithm.passes,
      plan,
      frozen=frozen,
      trained=trained,
      slots=self._slots,
      batch=self._batch,
      width=self._backbone.width,
      adapted=self._adapted(),
    )

  def _adapted(self) -> set[str] | None:
    """The layers that have an adapter; None if whole models train."""
    found = {
      path.rpartition('/')[0]
      for role in (self._shapes.personal, self._shapes.shared)
      for key, value in role.items()
      if tree.is_stacked(key)
      for path in tree.flat(value)
    }
    return None if self._algorithm.passes.full else found

  def _lora(self) -> float:
    """LoRA FLOPs of one trained block, whichever roles its parts are in."""
    if self._algorithm.passes.full:
      return 0.0
    start = self._shapes.frozen.get('start', {})
    if 'blocks' in start:
      return cost.lora_flops(start['blocks'], self._backbone.cost.tokens)
    for role in (self._shapes.personal, self._shapes.shared):
      for key, value in role.items():
        if tree.is_stacked(key):
          return cost.lora_flops(value, self._backbone.cost.tokens)
    return 0.0
