"""The linear probe: the base is frozen, the head alone is trained.

By the server on public rows it is the honest baseline of a pre-trained model
with a new head; federated it is FedAvg of the head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, columns
from fedms_jax.core.contract import Algorithm, Prediction, Start
from fedms_jax.core.types import Batch, Passes, Plan, Roles
from fedms_jax.models import pretrained


def linear_probe(setting: Setting) -> Algorithm:
  """FedAvg of the head on the features of the frozen base."""
  backbone, task = setting.backbone, setting.task

  def begin(key, before: Roles) -> Roles:
    del key
    base = before.frozen['base']
    # A copy: what trains is given away to compiled steps.
    head = jax.tree.map(jnp.copy, before.frozen['head'])
    return Roles({'base': base}, {'head': head}, {})

  def derive(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    del plan
    base, inputs = roles.frozen['base'], columns.inputs(batch)
    return {'features': pretrained.encode(backbone, base, inputs)}

  def logits(roles: Roles, batch: Batch):
    base, head = roles.frozen['base'], roles.shared['head']
    return adapted.logits(backbone, base, head, batch['features'])

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key, start
    out = logits(roles, batch)
    return adapted.learned(task, batch, out)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    del plan
    return Prediction({'global': logits(roles, batch)}, {})

  return Algorithm(
    name='probe',
    backbone=backbone,
    task=task,
    begin=begin,
    columns=derive,
    derived=('features',),
    update=client.sgd(objective, setting.optimizer, client.everywhere),
    predict=predict,
    server=adapted.server(setting),
    masks=client.everywhere,
    served='global',
    passes=Passes(trained=0, frozen=1),
    models=lambda roles: {'global': roles.shared},
  )
