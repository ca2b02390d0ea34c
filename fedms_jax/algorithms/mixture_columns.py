"""Derived columns of FedMS's stage 2: what the frozen models make of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fedms_jax.algorithms import adapted, mixture
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import activation, tree
from fedms_jax.core.types import Batch, Plan, Roles, Tree


def columns(setting: Setting, choice: mixture.Personal) -> Callable:
  """The local prefix, and the frozen features of the base and of the global
  expert. The expert that the local one starts from shares its prefix."""
  backbone, first = setting.backbone, mixture.origin(choice)

  def prefixes(frozen: Tree, batch: Batch, boundary: int) -> dict[str, Any]:
    base = frozen['base']
    stacks = {name: frozen[name]['blocks'] for name in ('start', 'global')}

    def of(name):
      return adapted.prefix(backbone, base, stacks[name], batch, boundary)

    x = batch['prefix'] if 'prefix' in batch else of(first)
    # Stage 1 has moved nothing below the depth that it reached.
    below = jax.tree.map(lambda x: x[:boundary], stacks)
    same = tree.equal(below['start'], below['global'])
    (other,) = stacks.keys() - {first}
    return {first: x, other: jax.lax.cond(same, lambda: x, lambda: of(other))}

  def columns(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    base = roles.frozen['base']
    entering = prefixes(roles.frozen, batch, plan.boundary)
    features = {}
    for name, x in entering.items():
      stack = activation.at_rest(roles.frozen[name]['blocks'], backbone.blocks)
      features[name] = adapted.features(
        backbone, base, [stack], x, batch, plan.boundary
      )
    out = {'prefix': entering[first], 'base_features': features['start']}
    if choice.tower == 'lora':
      out['gate_prefix'] = entering['start']
    logits = mixture.global_logits(backbone, roles, features['global'])
    # A column holds what is smaller, and a vocabulary is wider than D; logits
    # against other rows of the batch are no column at all.
    wide = features['global'].ndim > 2 or logits.size > features['global'].size
    wide = wide or setting.task.within_batch
    if wide or choice.gate.mix == 'features':
      out['global_features'] = features['global']
    if not wide:
      out['global_logits'] = logits
    return out

  return columns


def deeper(setting: Setting, choice: mixture.Personal) -> Callable:
  """See `Algorithm.deeper`: features are of all blocks at any boundary."""
  backbone, origins = setting.backbone, {'prefix': mixture.origin(choice)}
  if choice.tower == 'lora':
    origins['gate_prefix'] = 'start'

  def columns(roles: Roles, batch: Batch, low: int, high: int) -> Batch:
    def of(name: str, expert: str):
      base, blocks = roles.frozen['base'], roles.frozen[expert]['blocks']
      return adapted.onward(
        backbone, base, blocks, batch[name], batch, low, high
      )

    return {name: of(name, expert) for name, expert in origins.items()}

  return columns
