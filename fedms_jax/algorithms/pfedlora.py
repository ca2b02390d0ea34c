"""pFedLoRA (arXiv 2310.13283): own models that meet in one small adapter.

Every client has a model of its own, and beside the last layer of it the same
small adapter, a linear map of low rank from the feature x to the classes,
which alone is sent and averaged. A round has two parts:

  1. the own model trains on (1 - weight) loss(own(x)) + weight loss(adapter(x))
     while the adapter rests, so that what others know reaches the features;
  2. the adapter trains on loss(adapter(x)) while the own model rests.

In the paper the clients' models differ in size, and each part is an epoch or
more. Here all own models are LoRA and a head on one base, the first part is a
share of the local steps, and the loss of the second has weight 1; that is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from fedms_jax.algorithms import adapted, personal, two_experts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client
from fedms_jax.core.contract import Algorithm, ClientUpdate, Prediction, Start
from fedms_jax.core.types import Backbone, Batch, Plan, Roles, Tree
from fedms_jax.models import linear
from fedms_jax.models.tasks import weighted_mean


class Choice(NamedTuple):
  """rank: of the adapter. weight: of its loss while the own model trains, in
  [0, 1]. model_share: of the local steps, the first ones, that train the own
  model, in (0, 1)."""

  rank: int
  weight: float
  model_share: float


def pfedlora(
  setting: Setting, choice: Choice, *, adapter: Tree | None = None
) -> Algorithm:
  """pFedLoRA of a model with a head that trains.

  Shared is 'adapter'; personal are 'blocks' (LoRA) and 'head'. Predicts the
  own model, which users get, as 'local', and what the adapter says of its
  features as 'adapter'. adapter: see `adapted.fresh`.
  """
  backbone = _with_adapter(setting.backbone, choice.rank)
  plain = personal.local_only(setting, adapter=adapter)

  def begin(key, before: Roles) -> Roles:
    roles = plain.begin(key, before)
    classes = before.frozen['head']['kernel'].shape[-1]
    shared = fresh(jax.random.fold_in(key, 1), backbone.width, choice, classes)
    return roles._replace(shared={'adapter': shared})

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    whole = adapted.at_rest(roles, backbone.blocks)
    x = _features(setting, whole, batch, plan)
    logits = plain.predict(roles, batch, plan).logits
    logits |= {'adapter': apply(roles.shared['adapter'], x)}
    return Prediction(logits, {})

  return plain._replace(
    name='pfedlora',
    backbone=backbone,
    begin=begin,
    predict=predict,
    update=_update(setting, choice),
    server=adapted.server(setting),
  )


def fresh(key, width: int, choice: Choice, classes: int) -> Tree:
  """A new adapter: {'down': D to R, 'up': R to C, with a bias}."""
  first, second = jax.random.split(key)
  return {
    'down': linear.init(first, width, choice.rank, bias=False),
    'up': linear.init(second, choice.rank, classes),
  }


def apply(adapter: Tree, x):
  """Logits [..., C] of features [..., D]."""
  return linear.apply(adapter['up'], linear.apply(adapter['down'], x))


def _update(setting: Setting, choice: Choice) -> ClientUpdate:
  """The two parts of a round, one after the other."""
  task = setting.task

  def logits(roles: Roles, batch: Batch, start: Start):
    x = _features(setting, roles, batch, start.plan)
    base, head = roles.frozen['base'], roles.personal['head']
    own = setting.backbone.logits(base, head, x)
    return own, apply(roles.shared['adapter'], x)

  def part(own_weight: float, weight: float, masks) -> ClientUpdate:
    def objective(roles: Roles, batch: Batch, key, start: Start):
      del key
      own, other = logits(roles, batch, start)
      loss = task.loss(own, batch)
      total = own_weight * weighted_mean(*loss)
      total += weight * weighted_mean(*task.loss(other, batch))
      return total, adapted.sums(task, own, loss, batch)

    return client.sgd(objective, setting.optimizer, masks)

  model = part(1 - choice.weight, choice.weight, _own_masks)
  meeting = part(0.0, 1.0, _adapter_masks)
  return personal.in_turn(model, meeting, choice.model_share)


def _own_masks(plan: Plan):
  return {'adapter': False}, plan.active


def _adapter_masks(plan: Plan):
  return plan.active, {'blocks': False, 'head': False}


def _features(setting: Setting, roles: Roles, batch: Batch, plan: Plan):
  own = roles.personal['blocks']
  return two_experts.features(setting, roles.frozen, own, batch, plan)


def _with_adapter(backbone: Backbone, rank: int) -> Backbone:
  """The backbone whose head costs what the adapter does, too."""
  cost, width = backbone.cost, backbone.width
  head = jax.eval_shape(backbone.init_head, jax.random.key(0))
  more = 2.0 * rank * (width + head['kernel'].shape[-1])
  return backbone._replace(cost=cost._replace(head=cost.head + more))
