"""Analytic costs: they depend on what is active, not on how it is simulated.

FLOPs count matrix products, a multiply-add as 2. A backward pass through a
frozen block costs one more forward (the gradient of its input), through
trained weights one more again; it ends at the lowest active block.
"""

from __future__ import annotations

import jax
import numpy as np

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
) -> float:
  """Peak bytes on a client's device: weights, gradient, optimizer slots, kept
  activations of the blocks that back-propagate, and one block's workspace."""
  blocks = len(plan.active)
  lowest = plan.active.index(True) if any(plan.active) else blocks
  kept = passes.trained * (blocks - lowest) * cost.activation
  stream = 4.0 * cost.tokens * width
  workspace = batch * (kept + cost.activation + stream)
  return frozen + trained * (2 + slots) + workspace
