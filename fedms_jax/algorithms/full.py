"""Training of all weights: pre-training by the server, or federated.

Phase 1 of federated foundation models (arXiv 2305.11414) is centralized on
public data: one client that has all rows.
"""

from __future__ import annotations

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import activation, client
from fedms_jax.core.columns import inputs
from fedms_jax.core.contract import Algorithm, Prediction, Start
from fedms_jax.core.types import Batch, Passes, Plan, Roles, Span, Tree


def full_model(setting: Setting) -> Algorithm:
  """FedAvg of the whole model (arXiv 1602.05629): nothing is frozen."""
  backbone, task = setting.backbone, setting.task

  def begin(key, before: Roles) -> Roles:
    del key
    base, head = before.frozen['base'], before.frozen['head']
    return Roles({}, base | {'head': head}, {})

  def logits(shared, batch: Batch, plan: Plan):
    mask = backbone.mask(inputs(batch))
    x = backbone.embed(shared, inputs(batch))
    spans = [
      Span(s.start, s.stop, (s.params, None))
      for s in activation.spans([shared['blocks']], 0)
    ]
    features = backbone.features(shared, backbone.run(spans, x, mask), mask)
    return adapted.logits(
      backbone, shared, shared['head'], features, frozen=False
    )

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    out = logits(roles.shared, batch, start.plan)
    return adapted.learned(task, batch, out)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    shared = client.rest(roles.shared, backbone.blocks)
    return Prediction({'global': logits(shared, batch, plan)}, {})

  def models(roles: Roles) -> dict[str, Tree]:
    base = {key: x for key, x in roles.shared.items() if key != 'head'}
    return {'global': {'base': base, 'head': roles.shared['head']}}

  return Algorithm(
    name='full',
    backbone=backbone,
    task=task,
    begin=begin,
    columns=lambda roles, batch, plan: {},
    derived=(),
    update=client.sgd(objective, setting.optimizer, client.everywhere),
    predict=predict,
    server=adapted.server(setting),
    masks=client.everywhere,
    served='global',
    passes=Passes(trained=1, frozen=0, full=True),
    models=models,
  )
