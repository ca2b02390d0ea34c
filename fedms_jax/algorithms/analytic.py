"""Heads of a frozen base that are computed, not trained.

Clients send sums over their rows, once; the head follows from the sums of all
rows that anybody has had. So it is the same for one client or many, and for
any order of tasks, and it forgets nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import columns, metrics, tree
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Context,
  Message,
  Prediction,
  Received,
  Sender,
  Server,
  Start,
)
from fedms_jax.core.types import Backbone, Batch, Passes, Plan, Roles, Tree
from fedms_jax.models import pretrained

_SUMS, FEATURES = 'sums', 'features'


class Head(NamedTuple):
  """A head that follows from sums.

  lift: features [B, D] -> what is summed [B, E]. add: (E, C) -> empty sums.
  of: (lifted [B, E], one-hot labels [B, C], mask [B]) -> the sums of a batch.
  solve: sums -> head. logits: (head, lifted) -> [B, C].
  linear: whether that is a linear head of the features, {'kernel', 'bias'}.
  """

  lift: Callable
  empty: Callable[[int, int], Tree]
  of: Callable
  solve: Callable[[Tree], Tree]
  logits: Callable
  linear: bool = False


def nearest(temperature: float) -> Head:
  """The nearest class mean by cosine (SimpleCIL, arXiv 2303.07338; federated
  class means are in arXiv 2109.00150): C D + C numbers are sent. temperature:
  that divides cosines to make logits. A class without rows has cosine 0."""

  def solve(sums: Tree) -> Tree:
    counts = jnp.maximum(sums['count'], 1.0)
    means = sums['sum'] / counts[:, None]
    length = jnp.linalg.norm(means, axis=-1, keepdims=True)
    return {'kernel': (means / jnp.maximum(length, 1e-12)).T}

  def logits(head: Tree, x):
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(length, 1e-12) @ head['kernel'] / temperature

  return Head(
    lambda x: x,
    lambda width, classes: {
      'sum': jnp.zeros((classes, width)), 'count': jnp.zeros(classes)
    },
    lambda x, hot, mask: {
      'sum': (hot * mask[:, None]).T @ x, 'count': jnp.sum(
        hot * mask[:, None], axis=0
      )
    },
    solve,
    logits,
  )  # fmt: skip


def ridge(strength: float, width: int, seed: int = 0) -> Head:
  """Ridge regression of one-hot labels: (G + strength I)^-1 Q with G = sum of
  phi phi^T and Q = sum of phi y^T over all rows (analytic class-incremental
  learning, arXiv 2205.14922): E^2 + E C numbers are sent.

  width: of random ReLU features phi, max(0, W x / sqrt(D)); 0: the features
  themselves. Both have a 1 beside them, which is shrunk as the others are.
  """

  def lift(x):
    if width:
      keys = jax.random.key(seed)
      draws = jax.random.normal(keys, (x.shape[-1], width))
      x = jax.nn.relu(x @ draws / jnp.sqrt(jnp.float32(x.shape[-1])))
    return jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)

  def of(x, hot, mask):
    held = x * mask[:, None]
    return {'gram': held.T @ x, 'cross': held.T @ hot}

  def solve(sums: Tree) -> Tree:
    gram = sums['gram']
    shrunk = gram + strength * jnp.eye(len(gram))
    factor = jax.scipy.linalg.cho_factor(shrunk)
    weights = jax.scipy.linalg.cho_solve(factor, sums['cross'])
    return {'kernel': weights[:-1], 'bias': weights[-1]}

  return Head(
    lift,
    lambda width, classes: {
      'gram': jnp.zeros((width, width)), 'cross': jnp.zeros((width, classes))
    },
    of,
    solve,
    lambda head, x: x[:, :-1] @ head['kernel'] + head['bias'][None],
    linear=not width,
  )  # fmt: skip


def analytic(
  setting: Setting, name: str, head: Head, classes: int
) -> Algorithm:
  """The algorithm of one round in which everybody takes part, that sends the
  sums of a head. A client adds each row of its steps, so that it is to see
  each of its rows once; the server's memory has all sums so far."""
  backbone, task = setting.model, setting.task

  served = _served(head, backbone)
  nothing = functools.partial(_nothing, head, backbone.width, classes)

  def begin(key, before: Roles) -> Roles:
    del key
    shared = {'head': head.solve(nothing())}
    return Roles({'base': before.frozen['base']}, shared, {})

  def derive(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    del plan
    base, inputs = roles.frozen['base'], columns.inputs(batch)
    return {FEATURES: pretrained.encode(backbone, base, inputs)}

  def logits(roles: Roles, batch: Batch):
    x = head.lift(batch[FEATURES].astype(jnp.float32))
    return head.logits(roles.shared['head'], x)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    return Prediction({served: logits(roles, batch)}, {})

  def models(roles: Roles) -> dict[str, Tree]:
    return {served: roles.shared} if served == 'global' else {}

  def masks(plan: Plan):
    return {'head': False}, plan.active

  return Algorithm(
    name=name,
    backbone=backbone,
    task=task,
    begin=begin,
    columns=derive,
    derived=(FEATURES,),
    update=_adding(setting, head, classes, nothing, logits),
    predict=predict,
    server=_server(head, nothing),
    masks=masks,
    served=served,
    models=models,
    passes=Passes(trained=0, frozen=1),
    traffic=_traffic(nothing),
  )


def _served(head: Head, backbone: Backbone) -> str:
  """What the model is called: 'global' if it has a head of its backbone's
  form, so that it may be exported."""
  usual = jax.eval_shape(backbone.init_head, jax.random.key(0))
  like = head.linear and set(usual) == {'kernel', 'bias'}
  return 'global' if like else 'computed'


def _nothing(head: Head, width: int, classes: int) -> Tree:
  """Empty sums of features of this width."""
  x = jax.eval_shape(head.lift, jnp.zeros((1, width)))
  return head.empty(x.shape[-1], classes)


def _adding(
  setting: Setting,
  head: Head,
  classes: int,
  nothing: Callable[[], Tree],
  logits: Callable[[Roles, Batch], Any],
) -> ClientUpdate:
  """The client that adds up sums, and scores the head that it got."""
  task = setting.task

  def step(carry, start: Start, batch: Batch, key):
    del key
    hot = jax.nn.one_hot(batch['labels'], classes)
    mask = batch['mask'].astype(jnp.float32)
    x = head.lift(batch[FEATURES].astype(jnp.float32))
    out = logits(start.roles, batch)
    sums = {
      'loss': metrics.summed(*task.loss(out, batch)),
      'score': metrics.summed(*task.score(out, batch)),
    }
    return tree.add(carry, head.of(x, hot, mask)), sums

  def finish(carry, start: Start):
    return Message({}, {_SUMS: carry}), start.roles.personal

  return ClientUpdate(lambda start: nothing(), step, finish)


def _server(head: Head, nothing: Callable[[], Tree]) -> Server:
  """The server that adds up sums and solves for the head."""

  def send(before, message: Message, weight, sender: Sender) -> Message:
    del before, sender
    return tree.scale(message, (weight > 0).astype(jnp.float32))

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    del context
    new = tree.add(memory, received.extras[_SUMS])
    there = received.count > 0
    shared = tree.where(there, {'head': head.solve(new)}, roles.shared)
    return roles._replace(shared=shared), new, {}

  return Server(lambda key, roles: nothing(), send, 'sum', step)


def _traffic(nothing: Callable[[], Tree]):
  """Bytes of a client's round: its sums up, the head down."""

  def traffic(shapes: Roles, plan: Plan, ever, cohort: int):
    del plan, ever, cohort
    return float(tree.nbytes(jax.eval_shape(nothing))), float(
      tree.nbytes(shapes.shared)
    )

  return traffic
