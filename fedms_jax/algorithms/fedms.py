"""FedMS (arXiv 2312.15926): a global expert, then local experts and a gate.

Stage 1 trains a global expert by federated LoRA. Stage 2 gives each client a
local expert and mixes it with the frozen global one by a gate, whose adapter
alone is averaged. What the paper's abstract leaves open is our declared
reconstruction; each such choice is an argument here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.adapted import start as start
from fedms_jax.core import activation, client, metrics, tree
from fedms_jax.core.types import (
  Algorithm,
  Backbone,
  Batch,
  Passes,
  Plan,
  Prediction,
  Roles,
  Start,
  Tree,
)
from fedms_jax.models import gate
from fedms_jax.models.tasks import weighted_mean


def global_stage(setting: Setting, *, adapter: Tree | None = None) -> Algorithm:
  """Stage 1: federated LoRA on the active blocks, and the head.

  By itself it is FedAvg of LoRA (FedIT, arXiv 2305.05644): A and B are
  averaged apart, and what the product of the means misses is logged.
  adapter: stacked LoRA to start from; None: fresh, so that the start is the
  base model.
  """

  def begin(key, before: Roles) -> Roles:
    shared = adapted.fresh(setting, key, before, adapter)
    frozen = {'base': before.frozen['base'], 'start': shared}
    return Roles(frozen, shared, {})

  return adapted.one_model(
    setting,
    'fedms/global',
    begin,
    lambda roles: roles.shared,
    server=adapted.server(setting, residual=True),
  )


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


def personal_stage(setting: Setting, choice: Personal) -> Algorithm:
  """Stage 2: a local expert per client, and a gate that weighs it."""
  if choice.upload and choice.tower == 'lora':
    raise ValueError(
      f'`Personal.upload`={choice.upload:g} does not go with '
      '`Personal.tower`=lora; allowed: one of them. Set the other to its '
      'default.'
    )
  backbone = setting.backbone
  masks = _upload_masks(backbone.blocks, choice.upload)
  averaged = choice.tower == 'lora' and choice.scope == 'shared'
  experts = _experts(setting, choice)
  fixed = choice.gate.kind == 'fixed'  # and reads no features
  return Algorithm(
    name='fedms/personal',
    backbone=backbone,
    task=setting.task,
    begin=_begin_personal(setting, choice),
    columns=_personal_columns(setting, choice),
    derived=('prefix', 'base_features'),
    update=client.sgd(
      _personal_objective(setting, choice, experts),
      setting.optimizer,
      masks,
      ('loss', 'score', 'gate_weight', 'gate_entropy'),
    ),
    predict=_personal_predict(setting, experts),
    server=adapted.server(setting, residual=averaged or choice.upload > 0),
    masks=masks,
    served='mixture',
    passes=Passes(
      trained=1 + (choice.tower == 'lora'), frozen=1 if fixed else 2
    ),
    models=lambda roles: {
      'global': roles.frozen['global'],
      'local': _local(backbone, choice, roles),
    },
  )


def uploaded(blocks: int, share: float) -> int:
  """How many of the lowest blocks `Personal.upload` stands for."""
  return math.ceil(share * blocks)


def _upload_masks(blocks: int, upload: float) -> Callable:
  """The lowest `upload` share of the blocks is the server's, if active."""
  if not upload:
    return client.everywhere
  limit = uploaded(blocks, upload)

  def masks(plan):
    blocks = tuple(enumerate(plan.active))
    shared = tuple(a and b < limit for b, a in blocks)
    personal = tuple(a and b >= limit for b, a in blocks)
    return shared, personal

  return masks


def _origin(choice: Personal) -> str:
  """Which frozen expert the local one starts as a copy of."""
  return 'global' if choice.local_start == 'global' else 'start'


def _begin_personal(setting: Setting, choice: Personal) -> Callable:
  def begin(key, before: Roles) -> Roles:
    frozen = before.frozen | {'global': before.shared}
    local = frozen[_origin(choice)]
    gates = {}
    if choice.gate.kind != 'fixed':
      gates['gate'] = gate.init(key, choice.gate)
    if choice.tower == 'lora':
      gates['gate_blocks'] = setting.lora.init(
        jax.random.fold_in(key, 1), frozen['base']['blocks']
      )
    uploads = {'blocks': local['blocks']} if choice.upload else {}
    if choice.scope == 'local':
      return Roles(frozen, uploads, local | gates)
    return Roles(frozen, gates | uploads, local)

  return begin


def _personal_columns(setting: Setting, choice: Personal) -> Callable:
  """The local prefix, and the frozen features of the base and of the global
  expert. The expert that the local one starts from shares its prefix."""
  backbone, origin = setting.backbone, _origin(choice)

  def prefixes(frozen: Tree, batch: Batch, boundary: int) -> dict[str, Any]:
    base = frozen['base']
    stacks = {name: frozen[name]['blocks'] for name in ('start', 'global')}

    def of(name):
      return adapted.prefix(backbone, base, stacks[name], batch, boundary)

    start = of('start')
    # Stage 1 has moved nothing below the depth that it reached.
    below = jax.tree.map(lambda x: x[:boundary], stacks)
    same = tree.equal(below['start'], below['global'])
    other = jax.lax.cond(same, lambda: start, lambda: of('global'))
    return {'start': start, 'global': other}

  def columns(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    base = roles.frozen['base']
    entering = prefixes(roles.frozen, batch, plan.boundary)
    features = {}
    for name, x in entering.items():
      stack = activation.at_rest(roles.frozen[name]['blocks'], backbone.blocks)
      features[name] = adapted.features(
        backbone, base, [stack], x, batch, plan.boundary
      )
    out = {'prefix': entering[origin], 'base_features': features['start']}
    if choice.tower == 'lora':
      out['gate_prefix'] = entering['start']
    logits = _global_logits(backbone, roles, features['global'])
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


def _gates(roles: Roles) -> Tree:
  """The gate and its tower, in whichever role they are."""
  return roles.shared if 'gate' in roles.shared else roles.personal


def _global_logits(backbone: Backbone, roles: Roles, features):
  head = roles.frozen['global']['head']
  return backbone.logits(roles.frozen['base'], head, features)


def _looked_up(backbone: Backbone, roles: Roles, batch: Batch):
  """The global expert's logits, from the column that there is."""
  if 'global_logits' in batch:
    return batch['global_logits']
  return _global_logits(backbone, roles, batch['global_features'])


def _local(backbone: Backbone, choice: Personal, roles: Roles) -> Tree:
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


def _experts(setting: Setting, choice: Personal) -> Callable:
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
      [_gates(roles)['gate_blocks']],
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
      _gates(roles).get('gate', {}),
      gate_features(roles, batch, plan),
      adapted.mask(backbone, batch),
    )
    if spec.mix == 'features':
      pair = jnp.stack([batch['global_features'], features], axis=-2)
      pair = jax.lax.stop_gradient(pair) if detach else pair
      mixed = backbone.logits(base, head, gate.mix(spec, weights, pair))
    else:
      inner = jax.lax.stop_gradient(local) if detach else local
      pair = jnp.stack([_looked_up(backbone, roles, batch), inner], axis=-2)
      mixed = gate.mix(spec, weights, pair)
    return weights, local, mixed

  return experts


def _personal_objective(setting: Setting, choice: Personal, experts):
  task = setting.task

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    own = choice.local_loss == 'own'
    weights, local, mixed = experts(roles, batch, start.plan, detach=own)
    loss = task.loss(mixed, batch)
    total = weighted_mean(*loss)
    if choice.local_loss != 'mixture':
      total += weighted_mean(*task.loss(local, batch))
    sums = adapted.sums(task, mixed, loss, batch)
    stats = _gate_stats(weights, adapted.mask(setting.backbone, batch))
    for name, value in stats.items():
      sums[name] = metrics.summed(value, batch['mask'])
    return total, sums

  return objective


def _gate_stats(weights, mask) -> dict[str, Any]:
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


def _personal_predict(setting: Setting, experts) -> Callable:
  backbone = setting.backbone

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    whole = adapted.at_rest(roles, backbone.blocks)
    base, head = roles.frozen['base'], roles.frozen['start']['head']
    weights, local, mixed = experts(whole, batch, plan)
    out = {
      'pretrained': backbone.logits(base, head, batch['base_features']),
      'global': _looked_up(backbone, roles, batch),
      'local': local,
      'mixture': mixed,
    }
    return Prediction(out, _gate_stats(weights, adapted.mask(backbone, batch)))

  return predict
