"""Analytic costs: they depend on what is active, not on how it is simulated.

FLOPs count matrix products, a multiply-add as 2. A backward pass through a
frozen block costs one more forward (the gradient of its input), through
trained weights one more again; it ends at the lowest active block.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection

import jax
import numpy as np

from fedms_jax.core.token_logits import CHUNK_BYTES
from fedms_jax.core.types import BackboneCost, Passes, Plan, Tree


def lora_flops(stacked: Tree, tokens: int) -> float:
  """Forward FLOPs of one block's LoRA for one example: 2 T R (d_in + d_out),
  which is 2 T times its number of parameters."""
  blocks = jax.tree.leaves(stacked)
  return 2.0 * tokens * sum(np.prod(x.shape[1:]) for x in blocks)


def _suffix(
  cost: BackboneCost, passes: Passes, plan: Plan, lora: float
) -> float:
  """Forward and backward of what lies above the frozen prefix."""
  blocks = len(plan.active)
  above = blocks - plan.boundary
  lowest = plan.active.index(True) if any(plan.active) else blocks
  active = sum(plan.active)
  forward = above * cost.block + active * lora + cost.head
  # Of a block whose weights stay, gradients of its input alone are computed.
  backward = (blocks - lowest + (active if passes.full else 0)) * cost.block
  backward += 2 * active * lora + 2 * cost.head
  again = passes.again * forward
  return passes.trained * (forward + backward) + again


def _derived(
  cost: BackboneCost, passes: Passes, plan: Plan, more: int = 0
) -> float:
  """The frozen prefix, and frozen towers above it, `more` of them than a step
  reads."""
  above = len(plan.active) - plan.boundary
  tower = above * cost.block + cost.head
  towers = passes.frozen + more
  return cost.stem + plan.boundary * cost.block + towers * tower


def client_flops(
  cost: BackboneCost, passes: Passes, plan: Plan, lora: float
) -> float:
  """FLOPs that a client's device spends on one example of one step; towers
  share their frozen prefix, nothing is kept between steps."""
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
  more = passes.ahead
  if scope == 'step':
    derived, more = examples, 0
  return derived * _derived(cost, passes, plan, more) + examples * _suffix(
    cost, passes, plan, lora
  )


def fresh_flops(cost: BackboneCost, passes: Passes, plan: Plan, scope='step'):
  """FLOPs of one row of `Start.fresh`, which is looked at once in a round;
  where columns live longer than a step, of the tower that is not frozen."""
  above = (len(plan.active) - plan.boundary) * cost.block + cost.head
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
  """Peak bytes on a client's device: weights, gradient, optimizer slots, and
  what the larger one of two moments takes: the backward pass of one block, or
  the reading of logits, beside what the blocks keep.

  adapted: layers that have an adapter; None: all train.
  """
  count, looped = _trained_blocks(cost, plan)
  kept = cost.activation
  if adapted is not None:
    kept -= sum(size for layer, size in cost.spared if layer not in adapted)
  held = passes.trained * count * (kept + (0.0 if looped else cost.loose))
  # A loop takes one of its blocks apart at a time.
  backward = cost.work + (kept + cost.loose if looped or not count else 0.0)
  stream = 4.0 * cost.tokens * width
  reading = _reading(cost, passes, batch, stream)
  workspace = batch * held + max(batch * backward, reading)
  return frozen + trained * (2 + slots) + workspace


def _trained_blocks(cost: BackboneCost, plan: Plan) -> tuple[int, bool]:
  """(how many blocks a backward pass goes through, whether in a loop)."""
  if not any(plan.active):
    return 0, False
  above = plan.active[plan.active.index(True) :]
  runs = (len(list(run)) for _, run in itertools.groupby(above))
  return len(above), max(runs) > cost.unroll


def _reading(cost: BackboneCost, passes: Passes, batch: int, stream: float):
  """Bytes of a batch while its logits are read: arrays as large as the
  features, `stream` each, and the logits, as `core.token_logits` has them.

  How many arrays there are is measured by XLA's `memory_analysis`; of several
  models' logits, mixtures among them.
  """
  several = passes.trained + passes.frozen > 1
  features = batch * stream * (3.0 + 4.5 * passes.frozen)
  whole = 4.0 * batch * cost.tokens * cost.vocabulary
  if whole <= CHUNK_BYTES:
    return features + whole * (7.0 if several else 2.0)
  return features + CHUNK_BYTES * (7.0 / 3.0 if several else 2.0)
