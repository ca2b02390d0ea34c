"""The mixture of FedMS's stage 2: a global expert, a local one, and the gate.

What the paper's abstract leaves open is our declared reconstruction; each such
choice is a field of `Personal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.types import Backbone, Batch, Plan, Roles, Tree
from fedms_jax.models import gate


class Personal(NamedTuple):
  """The choices of stage 2.

  local_start: 'global' (copy of the global expert) or 'zero' (as the global
  expert started). local_loss: what trains the local expert: 'mixture', 'own'
  or 'both'. tower: gate features of the frozen base, or of a tower with LoRA
  of its own. scope: the gate, with its tower, is 'shared' (averaged), or
  'local' (of each client). upload: share of the blocks, from the input side,
  whose local LoRA is averaged too.
  """

  gate: gate.GateSpec
  local_start: str = 'global'
  local_loss: str = 'both'
  tower: str = 'frozen'
  scope: str = 'shared'
  upload: float = 0.0


def uploaded(blocks: int, share: float) -> int:
  """How many of the lowest blocks `Personal.upload` stands for."""
  return math.ceil(share * blocks)


def gates(roles: Roles) -> Tree:
  """The gate and its tower, in whichever role they are."""
  return roles.shared if 'gate' in roles.shared else roles.personal


def global_logits(backbone: Backbone, roles: Roles, features):
  head = roles.frozen['global']['head']
  return backbone.logits(roles.frozen['base'], head, features)


def looked_up(backbone: Backbone, roles: Roles, batch: Batch):
  """The global expert's logits, from the column that there is."""
  if 'global_logits' in batch:
    return batch['global_logits']
  return global_logits(backbone, roles, batch['global_features'])


def local_expert(backbone: Backbone, choice: Personal, roles: Roles) -> Tree:
  """The local expert, with the server's blocks where those are averaged."""
  own, limit = roles.personal, uploaded(backbone.blocks, choice.upload)
  blocks = own['blocks']
  if limit:
    blocks = _stacked(roles.shared['blocks'], blocks, limit)
  return {'blocks': blocks, 'head': own['head']}


def _stacked(below: Tree, above: Tree, limit: int) -> Tree:
  """Stacked LoRA that is another one from block `limit` on."""
  return jax.tree.map(
    lambda x, y: jnp.concatenate([x[:limit], y[limit:]]), below, above
  )


def experts(setting: Setting, choice: Personal) -> Callable:
  """(roles as `client.join` gives them, batch, plan) -> (weights [B, E, ...],
  local logits [B, C], mixed logits [B, C])."""
  backbone, spec = setting.backbone, choice.gate

  limit = uploaded(backbone.blocks, choice.upload)

  def local_stacks(roles: Roles):
    personal = roles.personal['blocks']
    if not limit:
      return [personal]
    shared = roles.shared['blocks']
    full = _stacked(shared.full, personal.full, limit)
    return [shared, personal._replace(full=full)]

  def gate_features(roles: Roles, batch, plan):
    if choice.tower == 'frozen':
      return batch['base_features']
    base = roles.frozen['base']
    return adapted.features(
      backbone,
      base,
      [gates(roles)['gate_blocks']],
      batch['gate_prefix'],
      batch,
      plan.boundary,
    )

  def experts(roles: Roles, batch: Batch, plan: Plan, detach: bool = False):
    base, head = roles.frozen['base'], roles.personal['head']
    features = adapted.features(
      backbone,
      base,
      local_stacks(roles),
      batch['prefix'],
      batch,
      plan.boundary,
    )
    local = backbone.logits(base, head, features)
    weights = gate.weights(
      spec,
      gates(roles).get('gate', {}),
      gate_features(roles, batch, plan),
      adapted.mask(backbone, batch),
    )
    if spec.mix == 'features':
      pair = jnp.stack([batch['global_features'], features], axis=-2)
      pair = jax.lax.stop_gradient(pair) if detach else pair
      mixed = backbone.logits(base, head, gate.mix(spec, weights, pair))
    else:
      inner = jax.lax.stop_gradient(local) if detach else local
      pair = jnp.stack([looked_up(backbone, roles, batch), inner], axis=-2)
      mixed = gate.mix(spec, weights, pair)
    return weights, local, mixed

  return experts


def gate_stats(weights, mask) -> dict[str, Any]:
  """Weight of the global expert and entropy in nats, one per example: means
  over its tokens, mask [B, T], where they are weighed apart."""

  def per_example(x):
    if x.ndim == 1:
      return x
    held = jnp.ones(x.shape) if mask is None else mask.astype(x.dtype)
    return jnp.sum(x * held, -1) / jnp.maximum(jnp.sum(held, -1), 1.0)

  return {
    'gate_weight': per_example(jnp.mean(weights[..., gate.GLOBAL, :], -1)),
    'gate_entropy': per_example(gate.entropy(weights)),
  }
