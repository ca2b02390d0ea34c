"""One adapted model: a frozen base, LoRA on its blocks, and a head.

What all methods have in common that train one model at a client, and differ
in where its parts are kept and how the server merges them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.adapters import lora
from fedms_jax.core import (
  activation,
  client,
  joined,
  metrics,
  token_logits,
  tree,
)
from fedms_jax.core.activation import Stack
from fedms_jax.core.columns import inputs
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Prediction,
  Server,
  Start,
)
from fedms_jax.core.token_logits import TokenLogits
from fedms_jax.core.types import (
  Backbone,
  Batch,
  Passes,
  Plan,
  Roles,
  Task,
  Tree,
)
from fedms_jax.models.tasks import weighted_mean
from fedms_jax.server.averaged import Aggregator, averaged
from fedms_jax.server.measures import with_residual


class Setting(NamedTuple):
  """What the stages of one run have in common.

  model: as it is, without an adapter. optimizer, outer: optax transformations,
  of clients and of the server. aggregator: for methods that leave it to the
  user. residual: whether averages of LoRA log what they miss. gradient: see
  `client.sgd`. local: (objective, optimizer, masks, prepare) -> the client
  update, in place of `client.sgd`; None: that.
  """

  model: Backbone
  task: Task
  optimizer: Any
  outer: Any
  aggregator: Aggregator
  lora: lora.Spec
  residual: bool = True
  gradient: Callable = client.mean_gradient
  local: Callable[..., ClientUpdate] | None = None

  @property
  def backbone(self) -> Backbone:
    """The model with LoRA, so that there is one scale in a run."""
    return self.model.adapted(self.lora)


def start(base: Tree, head: Tree) -> Roles:
  """The roles before the first stage: a pre-trained model and its head."""
  return Roles({'base': base, 'head': head}, {}, {})


def fresh(setting: Setting, key, before: Roles, adapter: Tree | None) -> Tree:
  """{'blocks': LoRA [L, ...], 'head'} to begin with.

  adapter: stacked LoRA to start from; None: fresh, so that the start is the
  base model.
  """
  blocks = adapter
  if blocks is None:
    base = before.frozen['base']
    blocks = setting.lora.init(key, base['blocks'])
  return {'blocks': blocks, 'head': before.frozen['head']}


def update(
  setting: Setting,
  objective: Callable,
  masks: Callable,
  prepare: Callable[[Start], Tree] | None = None,
) -> ClientUpdate:
  """Local training on an objective, as the setting has it."""
  if setting.local is not None:
    return setting.local(objective, setting.optimizer, masks, prepare)
  return client.sgd(
    objective,
    setting.optimizer,
    masks,
    prepare=prepare,
    gradient=setting.gradient,
  )


def server(setting: Setting, *, residual: bool = False) -> Server:
  """The server of a method that leaves the aggregator to the user. residual:
  LoRA is averaged, and what its averages miss is logged, if the setting says
  so."""
  aggregator = setting.aggregator
  if residual and setting.residual:
    aggregator = with_residual(aggregator, setting.lora.scale)
  return averaged(aggregator, setting.outer)


def mask(backbone: Backbone, batch: Batch):
  """Which tokens exist, bool [B, T] or None."""
  return backbone.mask(inputs(batch))


def features(backbone: Backbone, base, stacks, x, batch, boundary: int):
  """Features of the model whose LoRA is `stacks`, from the block `boundary`."""
  spans = activation.over(base['blocks'], activation.spans(stacks, boundary))
  tokens = mask(backbone, batch)
  return backbone.featured(base, spans, x, tokens)


def prefix(backbone: Backbone, base, blocks, batch, boundary: int):
  """Activations [B, T, D] that enter block `boundary`."""
  x = backbone.embed(base, inputs(batch))
  return onward(backbone, base, blocks, x, batch, 0, boundary)


def onward(backbone: Backbone, base, blocks, x, batch, low: int, high: int):
  """What enters block `high`, of what enters block `low`."""
  spans = activation.prefix(base['blocks'], blocks, high, low)
  return backbone.run(spans, x, mask(backbone, batch))


def directions(setting: Setting, batch: Batch):
  """Features of the base, of an example's tokens their mean, of norm 1:
  [B, D]."""
  x = batch['base_features'].astype(jnp.float32)
  if x.ndim == 3:
    held = mask(setting.backbone, batch)
    held = jnp.ones(x.shape[:2]) if held is None else held
    held = held[..., None].astype(x.dtype)
    x = jnp.sum(x * held, 1) / jnp.maximum(jnp.sum(held, 1), 1.0)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def logits(backbone: Backbone, base: Tree, head: Tree, x, frozen: bool = True):
  """Logits of features x: an array, or `TokenLogits` if it were too large."""
  params = {key: v for key, v in base.items() if not tree.is_stacked(key)}

  def read(whole, x):
    params, head = whole
    return backbone.logits(params, head, x)

  # Of a table that trains, chunks add up their gradients as it is stored.
  args = (read, (params, head), x)
  if frozen:
    return token_logits.of(*args, backbone.once)
  return token_logits.of(*args)


def learned(task: Task, batch: Batch, logits, *others):
  """(the mean losses of logits and of others added up, metrics of the first).

  All are arrays, or all are `TokenLogits`, which are read in one pass.
  """
  if isinstance(logits, TokenLogits) and task.together:
    total, ((loss, score), *_) = task.together([logits, *others], batch)
    found = {'loss': metrics.summed(*loss), 'score': metrics.summed(*score)}
    return weighted_mean(*total), found
  loss = task.loss(logits, batch)
  total = weighted_mean(*loss)
  for other in others:
    total += weighted_mean(*task.loss(other, batch))
  return total, sums(task, logits, loss, batch)


def sums(task: Task, logits, loss, batch: Batch) -> metrics.Sums:
  """The metrics of a step."""
  return {
    'loss': metrics.summed(*loss),
    'score': metrics.summed(*task.score(logits, batch)),
  }


def together(*stacks: Stack) -> Stack:
  """Stacks of different leaves of the same LoRA as one; a block is active
  where it is in any of them."""
  active = tuple(map(any, zip(*(s.active for s in stacks), strict=True)))
  full = lora.joined(*(s.full for s in stacks))
  if not any(active):
    return activation.at_rest(full, len(active))
  rows = tree.indices(active)

  def part(stack: Stack) -> Tree:
    if stack.active == active:
      return stack.part
    fixed = tree.rows(stack.full, rows)
    if stack.part is None:
      return fixed
    places = np.flatnonzero(np.asarray(stack.active)[rows])
    return jax.tree.map(lambda x, y: x.at[places].set(y), fixed, stack.part)

  return Stack(full, lora.joined(*map(part, stacks)), active)


def at_rest(roles: Roles, blocks: int) -> Roles:
  """Whole roles, for evaluation, in the form of those that train."""
  return roles._replace(
    shared=joined.rest(roles.shared, blocks),
    personal=joined.rest(roles.personal, blocks),
  )


def one_model(
  setting: Setting,
  name: str,
  begin: Callable[[Any, Roles], Roles],
  model: Callable[[Roles], Tree],
  *,
  masks: Callable[[Plan], tuple] = client.everywhere,
  penalty: Callable[[Roles, Plan], Any] | None = None,
  served: str = 'global',
  server: Server,
) -> Algorithm:
  """Local training of one adapted model.

  Args:
    setting: of the run.
    name: of the algorithm.
    begin: as in `Algorithm`; frozen gets 'base' and 'start', the model as
      `fresh` gives it.
    model: (roles as `client.join` or `client.rest` gives them) -> {'blocks':
      the LoRA as one `Stack`, 'head'}.
    masks: as in `Algorithm`.
    penalty: (roles as `client.join` gives them, plan) -> what is added to the
      loss; None: nothing.
    served: what the trained model is called.
    server: what becomes of what is sent.
  """
  backbone, task = setting.backbone, setting.task

  def columns(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    # Below the boundary every part of the LoRA is as it was at the start.
    base, blocks = roles.frozen['base'], roles.frozen['start']['blocks']
    if 'prefix' in batch:
      return {'prefix': batch['prefix']}
    return {'prefix': prefix(backbone, base, blocks, batch, plan.boundary)}

  def deeper(roles: Roles, batch: Batch, low: int, high: int) -> Batch:
    base, blocks = roles.frozen['base'], roles.frozen['start']['blocks']
    x = batch['prefix']
    return {'prefix': onward(backbone, base, blocks, x, batch, low, high)}

  def predicted(base, whole, batch: Batch, plan: Plan):
    x = features(
      backbone,
      base,
      [whole['blocks']],
      batch['prefix'],
      batch,
      plan.boundary,
    )
    return logits(backbone, base, whole['head'], x)

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    out = predicted(roles.frozen['base'], model(roles), batch, start.plan)
    total, found = learned(task, batch, out)
    if penalty is not None:
      total += penalty(roles, start.plan)
    return total, found

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    start = joined.rest(roles.frozen['start'], backbone.blocks)
    now = model(at_rest(roles, backbone.blocks))
    base = roles.frozen['base']
    found = {'pretrained': start, served: now}
    return Prediction(
      {name: predicted(base, x, batch, plan) for name, x in found.items()}, {}
    )

  def models(roles: Roles) -> dict[str, Tree]:
    found = model(at_rest(roles, backbone.blocks))
    return {served: {'blocks': found['blocks'].full, 'head': found['head']}}

  return Algorithm(
    name=name,
    backbone=backbone,
    task=task,
    begin=begin,
    columns=columns,
    derived=('prefix',),
    update=update(setting, objective, masks),
    predict=predict,
    server=server,
    masks=masks,
    served=served,
    passes=Passes(trained=1, frozen=0),
    models=models,
    deeper=deeper,
  )
