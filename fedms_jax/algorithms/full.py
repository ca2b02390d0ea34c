"""Training of all weights: pre-training by the server, or federated.

Phase 1 of federated foundation models (arXiv 2305.11414) is centralized on
public data: one client that has all rows.
"""

from __future__ import annotations

import jax

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import activation, client, joined, tree
from fedms_jax.core.columns import inputs
from fedms_jax.core.contract import Algorithm, Prediction, Start
from fedms_jax.core.types import (
  Backbone,
  Batch,
  Passes,
  Plan,
  Roles,
  Span,
  Task,
  Tree,
)


def whole(before: Roles) -> tuple[Tree, Tree]:
  """(base, head) of the stage before, be it such a one, or the start of a
  run."""
  if {'stem', 'head'} <= before.shared.keys():
    base = {k: x for k, x in before.shared.items() if k != 'head'}
    return base, before.shared['head']
  return before.frozen['base'], before.frozen['head']


def downstream(
  algorithm: Algorithm, first: Backbone, then: Backbone
) -> Algorithm:
  """The algorithm, as it begins on what a stage of `full_model` has made.

  first: the backbone that was trained. then: that of the algorithm, of the
  same blocks, maybe with another head. What both have alike is taken over;
  what only `then` has, such as a pooler, is fresh, and so is the head, unless
  it is the same backbone.
  """

  def begin(key, before: Roles) -> Roles:
    base, head = whole(before)
    if first is not then:
      keys = jax.random.split(jax.random.fold_in(key, 1))
      made, old = tree.flat(then.init(keys[0])), tree.flat(base)
      kept = {
        path: old[path]
        for path, x in made.items()
        if path in old and old[path].shape == x.shape
      }
      base, head = tree.nested(made | kept), then.init_head(keys[1])
    return algorithm.begin(key, adapted.start(base, head))

  return algorithm._replace(begin=begin)


def _logits(backbone: Backbone, task: Task, shared: Tree, batch: Batch):
  """Logits of a batch. shared: as `client.join` and `client.rest` give it."""
  mask = backbone.mask(inputs(batch))
  x = backbone.embed(shared, inputs(batch))
  spans = [
    Span(s.start, s.stop, (s.params, None))
    for s in activation.spans([shared['blocks']], 0)
  ]
  features = backbone.features(shared, backbone.run(spans, x, mask), mask)
  if task.together is None:  # its logits are not those of tokens
    return backbone.logits(shared, shared['head'], features)
  return adapted.logits(
    backbone, shared, shared['head'], features, frozen=False
  )


def full_model(setting: Setting) -> Algorithm:
  """FedAvg of the whole model (arXiv 1602.05629): nothing is frozen."""
  backbone, task = setting.backbone.whole(), setting.task

  def begin(key, before: Roles) -> Roles:
    del key
    base, head = whole(before)
    return Roles({}, base | {'head': head}, {})

  def seen(batch: Batch, key=None) -> Batch:
    return batch if task.hide is None else task.hide(batch, key)

  def objective(roles: Roles, batch: Batch, key, start: Start):
    batch = seen(batch, key)
    out = _logits(backbone, task, roles.shared, batch)
    return adapted.learned(task, batch, out)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    del plan
    shared = joined.rest(roles.shared, backbone.blocks)
    out = _logits(backbone, task, shared, seen(batch))
    return Prediction({'global': out}, {})

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
