"""KOALA (arXiv 2407.05268): small models at clients, a large one at the server.

A round: clients train small models on their rows and send them; the server
averages those of one size, and on public rows, whose labels it does not read,

  reverse distillation:  large <- t^2 KL(mean of the small ones || large),
  forward distillation:  small <- t^2 KL(large || small), each of them,

where KL is between softmaxes of logits over the temperature t; then it sends
the small ones back. Ours: a small model of k blocks is the first k blocks of
the foundation model with LoRA and a head of its own (the paper has other, small
networks), the large model all of its blocks with LoRA and a head; the server
follows Adam, fresh in each round; the mean is of logits; and the public rows of
a round are passed over once for each direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import adapted, distillation
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, descent, tree
from fedms_jax.core.activation import Stack, at_rest
from fedms_jax.core.columns import inputs
from fedms_jax.core.contract import (
  Algorithm,
  Context,
  Prediction,
  Received,
  Server,
  Start,
)
from fedms_jax.core.types import (
  ActiveSet,
  Backbone,
  Batch,
  Passes,
  Plan,
  Roles,
  Tree,
)
from fedms_jax.models.tasks import weighted_mean


class Choice(NamedTuple):
  """depths: blocks of the small models, ascending, each once. of_client:
  client -> which of them it has. steps, batch: on public rows in a round and a
  direction, and rows of each. learning_rate, temperature: of the distillation.
  """

  depths: tuple[int, ...]
  of_client: Callable[[int], int]
  steps: int
  batch: int
  learning_rate: float
  temperature: float


def small(backbone: Backbone, depth: int) -> Backbone:
  """The first `depth` blocks of a backbone, with its end."""

  def init(key) -> Tree:
    params = backbone.init(key)
    return params | {'blocks': tree.rows(params['blocks'], slice(depth))}

  return backbone._replace(blocks=depth, init=init)


class Models(NamedTuple):
  """The models of a run, which are all of one base."""

  setting: Setting
  choice: Choice

  def logits(self, base: Tree, whole: Tree, x, batch: Batch, depth: int):
    """Logits of the first `depth` blocks with the LoRA and head of `whole`, in
    the form of `client.join`, from the embedding x [B, T, D]."""
    backbone = self.setting.backbone
    cut = base | {'blocks': tree.rows(base['blocks'], slice(depth))}
    x = adapted.features(
      backbone, cut, [_cut(whole['blocks'], depth)], x, batch, 0
    )
    return backbone.logits(base, whole['head'], x)

  def part(self, shared: Tree, depth: int) -> Tree:
    """The model of `depth` blocks out of the shared tree."""
    blocks, head = _names(depth)
    return {'blocks': shared[blocks], 'head': shared[head]}

  def whole(self, model: Tree) -> Tree:
    """A whole model in the form of `client.join`."""
    return {
      'blocks': at_rest(model['blocks'], len_of(model['blocks'])),
      'head': model['head'],
    }


def len_of(stacked: Tree) -> int:
  """L of a stacked tree."""
  return len(jax.tree.leaves(stacked)[0])


def _cut(stack: Stack, depth: int) -> Stack:
  """The first blocks of a stack, of which no later one trains."""
  full = tree.rows(stack.full, slice(depth))
  return Stack(full, stack.part, stack.active[:depth])


def _names(depth: int) -> tuple[str, str]:
  """Keys of the LoRA and of the head of a small model."""
  return f'small_{depth}_blocks', f'small_{depth}_head'


def koala(
  setting: Setting, choice: Choice, *, adapter: Tree | None = None
) -> Algorithm:
  """KOALA. `backbone` is the largest small model, whose blocks a schedule
  activates; the large model is the server's memory, which no client is sent.

  Predicts 'pretrained' and 'global', the large model, and each small one by
  its depth, 'small_2'. adapter: which the large model starts from, and each
  small one from its first blocks; see `adapted.fresh`.
  """
  models, most = Models(setting, choice), max(choice.depths)
  large = setting.backbone

  def begin(key, before: Roles) -> Roles:
    start = adapted.fresh(setting, key, before, adapter)
    frozen = {'base': before.frozen['base'], 'start': start}
    shared = {}
    for depth in choice.depths:
      blocks, head = _names(depth)
      shared[blocks] = tree.rows(start['blocks'], slice(most))
      shared[head] = start['head']
    return Roles(frozen, shared, {})

  def columns(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    del plan  # models of all sizes go on from the embedding
    return {'embedded': large.embed(roles.frozen['base'], inputs(batch))}

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    del plan
    base, x = roles.frozen['base'], batch['embedded']

    def of(model: Tree, depth: int):
      return models.logits(base, models.whole(model), x, batch, depth)

    found = {
      'pretrained': of(roles.frozen['start'], large.blocks),
      'global': of(roles.frozen['server'], large.blocks),
    }
    for depth in choice.depths:
      part = models.part(roles.shared, depth)
      found[f'small_{depth}'] = of(part, depth)
    return Prediction(found, {})

  def held(shapes: Roles, plan: Plan) -> tuple[Roles, Plan]:
    """The base's first blocks and one small model."""
    depth = _depth(choice, plan)
    base = shapes.frozen['base']
    first = jax.eval_shape(lambda x: tree.rows(x, slice(depth)), base['blocks'])
    mine = {name: shapes.shared[name] for name in _names(depth)}
    seen = Plan(plan.active[:depth], min(plan.boundary, depth), plan.variant)
    return Roles({'base': base | {'blocks': first}}, mine, {}), seen

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    del cohort
    names = _names(_depth(choice, plan))
    mine = {name: shapes.shared[name] for name in names}
    up, down = (
      float(tree.nbytes_of(mine, _masks(choice, plan._replace(active=a))[0]))
      for a in (plan.active, ever)
    )
    return up, down

  several = len(choice.depths) > 1
  return Algorithm(
    name='koala',
    backbone=small(large, most),
    task=setting.task,
    begin=begin,
    columns=columns,
    derived=('embedded',),
    update=client.sgd(
      _objective(models), setting.optimizer, lambda plan: _masks(choice, plan)
    ),
    predict=predict,
    server=_server(models),
    masks=lambda plan: _masks(choice, plan),
    served='global',
    passes=Passes(trained=1, frozen=0),
    models=lambda roles: {'global': roles.frozen['server']},
    variant=(lambda _, client: choice.of_client(client)) if several else None,
    traffic=traffic,
    public=choice.steps * choice.batch,
    held=held,
  )


def _depth(choice: Choice, plan: Plan) -> int:
  """Blocks of the model of a client of this plan."""
  return max(choice.depths) if plan.variant is None else plan.variant


def _masks(choice: Choice, plan: Plan):
  """Active blocks and heads of one small model, or without a variant of all."""
  mask = {}
  for depth in choice.depths:
    blocks, head = _names(depth)
    mine = plan.variant in (None, depth)
    there = tuple(a and b < depth for b, a in enumerate(plan.active))
    mask |= {blocks: there if mine else False, head: mine}
  return mask, {}


def _objective(models: Models):
  """Cross-entropy of the small model of a client."""
  task = models.setting.task

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    depth = _depth(models.choice, start.plan)
    whole, base = models.part(roles.shared, depth), roles.frozen['base']
    out = models.logits(base, whole, batch['embedded'], batch, depth)
    loss = task.loss(out, batch)
    return weighted_mean(*loss), adapted.sums(task, out, loss, batch)

  return objective


def _server(models: Models) -> Server:
  """Averages small models, and distills both ways on public rows."""
  inner = adapted.server(models.setting)

  def init(key, roles: Roles) -> Tree:
    large = jax.tree.map(jnp.copy, roles.frozen['start'])
    return {'model': inner.init(key, roles), 'large': large}

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    roles, model, measured = inner.step(
      roles, memory['model'], received, context
    )
    large, shared = memory['large'], roles.shared
    if context.public is not None:
      large, shared, losses = distilled(
        models, roles.frozen['base'], large, shared, context.public
      )
      came = jnp.any(received.count > 0)
      large = tree.where(came, large, memory['large'])
      shared = tree.where(came, shared, roles.shared)
      measured = measured | losses
    memory = {'model': model, 'large': large}
    return roles._replace(shared=shared), memory, measured

  return inner._replace(
    init=init, step=step, broadcast=lambda memory: memory['large']
  )


def distilled(models: Models, base: Tree, large: Tree, shared: Tree, public):
  """(large model, shared small ones, losses by name) after reverse, then
  forward distillation on a batch of public rows."""
  backbone, choice = models.setting.backbone, models.choice
  depths = choice.depths

  def logits(model: Tree, batch: Batch, depth: int):
    x = backbone.embed(base, inputs(batch))
    return models.logits(base, models.whole(model), x, batch, depth)

  def smalls(shared: Tree, batch: Batch) -> list[Any]:
    return [logits(models.part(shared, d), batch, d) for d in depths]

  def pull(teacher, student, batch: Batch):
    tokens = adapted.mask(backbone, batch)
    counted = distillation.weights(student, batch, tokens)
    return distillation.divergence(
      teacher, student, counted, choice.temperature
    )

  def reverse(large: Tree, batch: Batch):
    teacher = sum(smalls(shared, batch)) / len(depths)
    return pull(teacher, logits(large, batch, backbone.blocks), batch)

  large, first = _descended(reverse, large, public, choice)

  def forward(shared: Tree, batch: Batch):
    teacher = logits(large, batch, backbone.blocks)
    return sum(pull(teacher, x, batch) for x in smalls(shared, batch))

  shared, second = _descended(forward, shared, public, choice)
  return large, shared, {'reverse_loss': first, 'forward_loss': second}


def _descended(loss: Callable, params: Tree, public: Batch, choice: Choice):
  """(params after a step on each batch of the public rows, mean loss)."""
  params, values = descent.descended(
    loss,
    params,
    optax.adam(choice.learning_rate),
    descent.batches(public, choice.steps, choice.batch),
  )
  return params, jnp.mean(values)
