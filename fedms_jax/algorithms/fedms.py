"""FedMS (arXiv 2312.15926): a global expert, then local experts and a gate.

Stage 1 trains a global expert by federated LoRA. Stage 2 gives each client a
local expert and mixes it with the frozen global one by a gate, whose adapter
alone is averaged. What the paper's abstract leaves open is our declared
reconstruction; each such choice is an argument here.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import (
  adapted,
  fresh_gate,
  mixture,
  mixture_columns,
)
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.adapted import start as start
from fedms_jax.algorithms.mixture import Personal as Personal
from fedms_jax.core import client, metrics
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Prediction,
  Start,
)
from fedms_jax.core.types import Batch, Plan, Roles, Tree
from fedms_jax.models import gate


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


def personal_stage(setting: Setting, choice: Personal) -> Algorithm:
  """Stage 2: a local expert per client, and a gate that weighs it."""
  backbone = setting.backbone
  mixture.check(choice)
  masks = mixture.upload_masks(backbone.blocks, choice.upload)
  averaged = choice.tower == 'lora' and choice.scope == 'shared'
  experts = mixture.experts(setting, choice)
  return Algorithm(
    name='fedms/personal',
    backbone=backbone,
    task=setting.task,
    begin=_begin_personal(setting, choice),
    columns=mixture_columns.columns(setting, choice),
    deeper=mixture_columns.deeper(setting, choice),
    derived=('prefix', 'base_features'),
    update=_personal_update(setting, choice, experts, masks),
    predict=_personal_predict(setting, experts),
    server=adapted.server(setting, residual=averaged or choice.upload > 0),
    masks=masks,
    served='mixture',
    passes=fresh_gate.passes(choice),
    stats=('gate_weight', 'gate_entropy') if choice.fresh else (),
    models=lambda roles: {
      'global': roles.frozen['global'],
      'local': mixture.local_expert(backbone, choice, roles),
    },
  )


def _begin_personal(setting: Setting, choice: Personal) -> Callable:
  def begin(key, before: Roles) -> Roles:
    frozen = before.frozen | {'global': before.shared}
    local = frozen[mixture.origin(choice)]
    gates = {}
    learned = gate.init(key, choice.gate)
    if learned:
      gates['gate'] = learned
    if choice.gate.odds:
      gates['gate_odds'] = jnp.zeros(1)
    if choice.tower == 'lora':
      gates['gate_blocks'] = setting.lora.init(
        jax.random.fold_in(key, 1), frozen['base']['blocks']
      )
    uploads = {'blocks': local['blocks']} if choice.upload else {}
    if choice.rows == 'crossfit':
      local = local | {f'{mixture.APART}{k}': v for k, v in local.items()}
    if choice.likeness:
      nothing = {'gate_profile': jnp.zeros(setting.backbone.width)}
      local, uploads = local | nothing, uploads | nothing
    if choice.scope == 'local':
      return Roles(frozen, uploads, local | gates)
    return Roles(frozen, gates | uploads, local)

  return begin


def _personal_update(
  setting: Setting, choice: Personal, experts, masks
) -> ClientUpdate:
  """Local training of stage 2."""
  if choice.fresh:
    return fresh_gate.update(setting, choice, experts, masks)
  update = client.sgd(
    _personal_objective(setting, choice, experts),
    setting.optimizer,
    fresh_gate.without(masks, choice, 'gate_profile'),
    ('loss', 'score', 'gate_weight', 'gate_entropy'),
    gradient=setting.gradient,
  )
  return fresh_gate.profiled(setting, choice, update)


def _personal_objective(setting: Setting, choice: Personal, experts):
  task = setting.task

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    own = choice.local_loss == 'own'
    seen = experts.see(roles, batch, start.plan, detach=own)
    weights, mixed = experts.weigh(roles, seen)
    others = () if choice.local_loss == 'mixture' else (seen.local,)
    total, sums = adapted.learned(task, batch, mixed, *others)
    stats = mixture.gate_stats(weights, adapted.mask(setting.backbone, batch))
    for name, value in stats.items():
      sums[name] = metrics.summed(value, batch['mask'])
    return total, sums

  return objective


def _personal_predict(setting: Setting, experts) -> Callable:
  backbone = setting.backbone

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    whole = adapted.at_rest(roles, backbone.blocks)
    base, head = roles.frozen['base'], roles.frozen['start']['head']
    shared = mixture.looked_up(backbone, roles, batch)
    seen = experts.see(whole, batch, plan, shared=shared)
    weights, mixed = experts.weigh(whole, seen)
    out = {
      'pretrained': adapted.logits(
        backbone, base, head, batch['base_features']
      ),
      'global': shared,
      'local': seen.local,
      'mixture': mixed,
    }
    return Prediction(
      out, mixture.gate_stats(weights, adapted.mask(backbone, batch))
    )

  return predict
