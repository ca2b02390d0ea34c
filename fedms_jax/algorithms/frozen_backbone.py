"""Methods whose models are one frozen model and something small beside it.

What is small is a `Form`: a soft prompt, or an adapter of the feature. Methods
say which forms are shared, personal or mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, columns
from fedms_jax.core.contract import Algorithm, Prediction, Server, Start
from fedms_jax.core.types import Batch, Mask, Passes, Plan, Roles, Tree
from fedms_jax.models import pretrained


class Form(NamedTuple):
  """What is learned beside a frozen model, and how it acts.

  fresh: (key, frozen) -> parts, what trains. logits: (frozen, parts, batch) ->
  logits. plain: (frozen, batch) -> logits of the model as it was. derived,
  column: name and function (base, inputs) of what is computed once. passes: see
  `Algorithm`.
  """

  fresh: Callable[[Any, Tree], Tree]
  logits: Callable[[Tree, Tree, Batch], Any]
  plain: Callable[[Tree, Batch], Any]
  derived: str
  column: Callable[[Tree, Any], Any]
  passes: Passes


def on_features(
  setting: Setting,
  fresh: Callable[[Any, Tree], Tree],
  logits: Callable[[Tree, Tree, Batch], Any],
) -> Form:
  """A form of a model with class prompts that changes how the feature of an
  image, which is derived once, is compared with them."""
  backbone = setting.backbone

  def plain(frozen: Tree, batch: Batch):
    classes = frozen['base']['final']['classes']
    return class_logits(setting, frozen, classes, batch['features'])

  def column(base: Tree, inputs):
    return pretrained.encode(backbone, base, inputs)

  passes = Passes(trained=0, frozen=1)
  return Form(fresh, logits, plain, 'features', column, passes)


def class_logits(setting: Setting, frozen: Tree, classes, x):
  """Logits [B, C] of image features [B, P] by class features [C, P]."""
  final = frozen['base']['final'] | {'classes': classes}
  return setting.backbone.logits({'final': final}, {}, x)


def averaged(setting: Setting, form: Form, name: str) -> Algorithm:
  """FedAvg of all parts."""

  def begin(key, frozen: Tree) -> Roles:
    return Roles(frozen, form.fresh(key, frozen), {})

  def models(roles: Roles, batch: Batch) -> Prediction:
    logits = form.logits(roles.frozen, roles.shared, batch)
    return Prediction({'global': logits}, {})

  return method(setting, form, name, begin, models, 'global', lambda roles: {})


def method(
  setting: Setting,
  form: Form,
  name: str,
  begin: Callable[[Any, Tree], Roles],
  models: Callable[[Roles, Batch], Prediction],
  served: str,
  own: Callable[[Roles], Tree],
  *,
  trained: Callable[[Roles, Batch, Start], tuple[Any, Any]] | None = None,
  prepare: Callable[[Start], Tree] | None = None,
  masks: Callable[[Plan], tuple[Mask, Mask]] = client.everywhere,
  server: Server | None = None,
) -> Algorithm:
  """A method on one frozen model.

  Args:
    setting: of the run.
    form: what is beside the model.
    name: of the algorithm.
    begin: (key, frozen) -> roles; frozen has 'base', and 'start' with the
      head that the run begins with.
    models: what there is to be evaluated beside the model as it was.
    served: which of them users get.
    own: roles -> the parts of a client's own model; none: {}.
    trained: (roles, batch, start) -> (logits, what is added to their loss);
      None: those of the model that is served, and nothing.
    prepare: see `client.sgd`.
    masks: as in `Algorithm`.
    server: None: that of the setting.
  """
  task = setting.task

  def begins(key, before: Roles) -> Roles:
    head = {'head': before.frozen['head']}
    return begin(key, {'base': before.frozen['base'], 'start': head})

  def derive(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    del plan
    base = roles.frozen['base']
    return {form.derived: form.column(base, columns.inputs(batch))}

  def plain_loss(roles: Roles, batch: Batch, start: Start):
    del start
    return models(roles, batch).logits[served], 0.0

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    out, more = (trained or plain_loss)(roles, batch, start)
    total, sums = adapted.learned(task, batch, out)
    return total + more, sums

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    del plan
    plain = form.plain(roles.frozen, batch)
    found = models(roles, batch)
    return Prediction({'pretrained': plain} | found.logits, found.stats)

  def parts(roles: Roles) -> dict[str, Tree]:
    found = {'global': roles.shared, 'local': own(roles)}
    return {name: x for name, x in found.items() if x}

  return Algorithm(
    name=name,
    backbone=setting.backbone.whole(),
    task=task,
    begin=begins,
    columns=derive,
    derived=(form.derived,),
    update=adapted.update(setting, objective, masks, prepare),
    predict=predict,
    server=server or adapted.server(setting),
    masks=masks,
    served=served,
    passes=form.passes,
    models=parts,
  )
