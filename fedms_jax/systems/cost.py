"""Analytic costs: they depend on what is active, not on how it is simulated.

FLOPs count matrix products, a multiply-add as 2. A backward pass through a
frozen block costs one more forward (the gradient of its input), through
trained weights one more again; it ends at the lowest active block.

A client's device runs each block whole, as published implementations do. Of
the last block the simulator may compute less, `BackboneCost.last`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection

import jax
import numpy as np

from fedms_jax.core.costs import BackboneCost, BlockCost
from fedms_jax.core.token_logits import CHUNK_BYTES
from fedms_jax.core.types import Passes, Plan, Tree


def lora_flops(stacked: Tree, tokens: int) -> float:
  """Forward FLOPs of one block's LoRA for one example: 2 T R (d_in + d_out),
  which is 2 T times its number of parameters."""
  blocks = jax.tree.leaves(stacked)
  return 2.0 * tokens * sum(np.prod(x.shape[1:]) for x in blocks)


def _top(cost: BackboneCost, blocks: int) -> float:
  """Forward FLOPs of so many blocks, the last one among them."""
  if not blocks or cost.last is None:
    return blocks * cost.block
  return (blocks - 1) * cost.block + cost.last.flops


def _ended(cost: BackboneCost, plan: Plan, start: int) -> BackboneCost:
  """What the simulator computes of a model whose last run of blocks begins
  there; the last block of a loop over all of them is like any other, see
  `transformer.run`."""
  return cost if start or len(plan.active) == 1 else cost.whole()


def _runs(plan: Plan) -> list[int]:
  """Where runs of blocks begin that train, or do not, above the boundary."""
  above = range(plan.boundary, len(plan.active))
  return [
    b for b in above
    if b == plan.boundary or plan.active[b] != plan.active[b - 1]
  ]  # fmt: skip


def _suffix(
  cost: BackboneCost, passes: Passes, plan: Plan, lora: float
) -> float:
  """Forward and backward of what lies above the frozen prefix."""
  blocks = len(plan.active)
  above = blocks - plan.boundary
  lowest = plan.active.index(True) if any(plan.active) else blocks
  active = sum(plan.active)
  forward = _top(cost, above) + active * lora + cost.head
  # Of a block whose weights stay, gradients of its input alone are computed.
  backward = _top(cost, blocks - lowest) + 2 * active * lora + 2 * cost.head
  if passes.full:
    backward += _top(cost, active) if plan.active[-1] else active * cost.block
  again = passes.again * forward
  return passes.trained * (forward + backward) + again


def _derived(
  cost: BackboneCost, passes: Passes, plan: Plan, more: int = 0
) -> float:
  """The frozen prefix, and frozen towers above it, `more` of them than a step
  reads."""
  above = len(plan.active) - plan.boundary
  tower = _top(cost, above) + cost.head
  towers = passes.frozen + more
  return cost.stem + plan.boundary * cost.block + towers * tower


def client_flops(
  cost: BackboneCost, passes: Passes, plan: Plan, lora: float
) -> float:
  """FLOPs that a client's device spends on one example of one step; towers
  share their frozen prefix, nothing is kept between steps."""
  cost = cost.whole()
  return _derived(cost, passes, plan) + _suffix(cost, passes, plan, lora)


def simulator_flops(
  cost: BackboneCost,
  passes: Passes,
  plan: Plan,
  lora: float,
  *,
  examples: float,
  derived: float,
  scope: str,
) -> float:
  """FLOPs that the simulator spends: `examples` trained, `derived` rows
  derived ahead; with scope `step`, every example derives its own."""
  more, low = passes.ahead, plan.boundary
  if scope == 'step':
    derived, more = examples, 0
  towers = _derived(_ended(cost, plan, low), passes, plan, more)
  top = _ended(cost, plan, max(_runs(plan), default=low))
  return derived * towers + examples * _suffix(top, passes, plan, lora)


def fresh_flops(cost: BackboneCost, passes: Passes, plan: Plan, scope='step'):
  """FLOPs of one row of `Start.fresh`, which is looked at once in a round;
  where columns live longer than a step, of the tower that is not frozen."""
  cost = _ended(cost, plan, plan.boundary)
  above = _top(cost, len(plan.active) - plan.boundary) + cost.head
  if scope != 'step':
    return above
  return cost.stem + plan.boundary * cost.block + passes.fresh * above


def client_memory(
  cost: BackboneCost,
  passes: Passes,
  plan: Plan,
  *,
  frozen: float,
  trained: float,
  slots: int,
  batch: int,
  width: int,
  adapted: Collection[str] | None = None,
) -> float:
  """Peak bytes of one client in training: weights, gradient, optimizer slots,
  and what the larger one of two moments takes: the backward pass of one block,
  or the reading of logits, beside what the blocks keep.

  cost: `whole` for a client's device. adapted: layers that have an adapter;
  None: all train.
  """
  cost = _ended(cost, plan, max(_runs(plan), default=plan.boundary))
  kept = _kept(cost, adapted)
  count, looped = _trained_blocks(cost, plan)
  whole = count if cost.last is None else max(count - 1, 0)
  held = whole * (kept + (0.0 if looped else cost.loose))
  # A loop takes one of its blocks apart at a time.
  backward = cost.work + (kept + cost.loose if looped or not count else 0.0)
  if cost.last is not None and count:
    held += _kept(cost.last, adapted) + cost.last.loose
    backward = backward if whole else cost.last.work
  stream = 4.0 * cost.tokens * width
  reading = _reading(cost, passes, batch, stream)
  workspace = passes.trained * batch * held + max(batch * backward, reading)
  return frozen + trained * (2 + slots) + workspace


def _kept(
  cost: BackboneCost | BlockCost, adapted: Collection[str] | None
) -> float:
  """Bytes that a block keeps whose layers of those names have an adapter."""
  if adapted is None:
    return cost.activation
  spared = (size for layer, size in cost.spared if layer not in adapted)
  return cost.activation - sum(spared)


def _trained_blocks(cost: BackboneCost, plan: Plan) -> tuple[int, bool]:
  """(how many blocks a backward pass goes through, whether in a loop)."""
  if not any(plan.active):
    return 0, False
  blocks, lowest = len(plan.active), plan.active.index(True)
  ends = blocks - (cost.last is not None)  # of runs that may be loops
  cuts = [lowest, *(b for b in _runs(plan) if b > lowest), ends]
  longest = max(y - x for x, y in itertools.pairwise(cuts))
  return blocks - lowest, longest > cost.unroll


def _reading(cost: BackboneCost, passes: Passes, batch: int, stream: float):
  """Bytes of a batch while its logits are read: arrays as large as the
  features, `stream` each, and the logits, as `core.token_logits` has them.

  How many arrays there are is measured by XLA's `memory_analysis`; of several
  models' logits, mixtures among them.
  """
  several = passes.trained + passes.frozen > 1
  # Of a model that reads few tokens, those of frozen towers are nothing.
  arrays = 3.0 + 4.5 * passes.frozen if cost.last is None else 3.5
  features = batch * stream * arrays
  whole = 4.0 * batch * cost.tokens * cost.vocabulary
  if whole <= CHUNK_BYTES:
    return features + whole * (7.0 if several else 2.0)
  return features + CHUNK_BYTES * (7.0 / 3.0 if several else 2.0)
