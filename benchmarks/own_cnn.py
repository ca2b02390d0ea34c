"""A user's own model in the engine: the CNN of `peers/cifar.py`, all of whose
weights train. It has no transformer blocks, and needs none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import cifar
from fedms_jax import schedules
from fedms_jax.core import client, metrics
from fedms_jax.core.contract import Algorithm, Prediction, Start
from fedms_jax.core.costs import BackboneCost
from fedms_jax.core.shapes import lead
from fedms_jax.core.types import (
  Backbone,
  Batch,
  Federation,
  Partition,
  Passes,
  Plan,
  Roles,
  Table,
  Tree,
)
from fedms_jax.models import linear, tasks
from fedms_jax.persistence import run_store
from fedms_jax.schedules import triggers
from fedms_jax.server import averaged
from fedms_jax.simulation import driver, observer
from fedms_jax.simulation.state import Options, Stage


def init(key) -> Tree:
  """167,562 parameters."""
  one, two = cifar.CHANNELS
  shapes = {
    'conv1': (3, 3, 3, one),
    'conv2': (3, 3, one, two),
    'hidden': (cifar.FEATURES, cifar.HIDDEN),
    'out': (cifar.HIDDEN, cifar.CLASSES),
  }
  make = jax.nn.initializers.glorot_uniform()
  keys = jax.random.split(key, len(shapes))
  return {
    name: {'kernel': make(k, shape), 'bias': jnp.zeros(shape[-1])}
    for k, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


def logits(params: Tree, images):
  """Logits [B, C] of uint8 images [B, H, W, 3]."""
  x = (images.astype(jnp.float32) / 255 - 0.5) / 0.25
  for name in ('conv1', 'conv2'):
    p = params[name]
    x = jax.lax.conv_general_dilated(
      x,
      p['kernel'],
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    x = pooled(jax.nn.relu(x + lead(p['bias'], x)))
  x = x.reshape(len(x), -1)
  x = jax.nn.relu(linear.apply(params['hidden'], x))
  return linear.apply(params['out'], x)


def pooled(x):
  """2 x 2 max-pooling of [B, H, W, C], without what is left over. As a
  maximum over axes it is faster on XLA:CPU than as a window."""
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2]
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def algorithm() -> Algorithm:
  """FedAvg of the whole model by SGD (arXiv 1602.05629)."""
  task = tasks.classification()

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key, start
    out = logits(roles.shared['model'], batch['inputs'])
    loss = task.loss(out, batch)
    sums = {
      'loss': metrics.summed(*loss),
      'score': metrics.summed(*task.score(out, batch)),
    }
    return tasks.weighted_mean(*loss), sums

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    del plan
    out = logits(roles.shared['model'], batch['inputs'])
    return Prediction({'global': out}, {})

  return Algorithm(
    name='own',
    backbone=backbone(),
    task=task,
    begin=lambda key, before: Roles({}, {'model': init(key)}, {}),
    columns=lambda roles, batch, plan: {},
    derived=(),
    update=client.sgd(
      objective, optax.sgd(cifar.LEARNING_RATE), client.everywhere
    ),
    predict=predict,
    server=averaged.averaged(averaged.mean(), optax.sgd(1.0)),
    masks=client.everywhere,
    served='global',
    passes=Passes(full=True),
  )


def backbone() -> Backbone:
  """What the engine asks of a model: here, that it has one block, always
  active, and what it costs."""
  flops = 2.0 * (30**2 * 27 * 32 + 13**2 * 288 * 64 + cifar.FEATURES * 64)

  def unasked(*args):
    raise NotImplementedError('the algorithm has a network of its own')

  functions = (
    'init',
    'embed',
    'mask',
    'run',
    'features',
    'init_head',
    'logits',
  )
  cost = BackboneCost(0.0, flops, 0.0, 1, 4.0 * (30**2 * 32 + 13**2 * 64))
  return Backbone(
    blocks=1,
    width=1,
    cost=cost,
    **dict.fromkeys(functions, unasked),
  )


def federation() -> Federation:
  """The clients of `peers/cifar.py`. The engine scores clients on rows of
  their own each round; one row is as little as it takes."""
  clients, each = cifar.CLIENTS, cifar.EACH
  rows = np.arange(clients * each, dtype=np.int32)
  first = rows[::each]

  def part(rows, size):
    return Partition(np.arange(clients + 1, dtype=np.int64) * size, rows)

  none = Partition(np.zeros(1, np.int64), rows[:0])
  names = tuple(map(str, range(cifar.CLASSES)))
  columns = {
    'inputs': cifar.images(),
    'labels': cifar.labels().astype(np.int32),
  }
  return Federation(
    Table(columns, names),
    part(rows, each),
    part(first, 1),
    part(first, 1),
    none,
    first,
    rows[:0],
  )


def simulation(own: Algorithm, data: Federation, rounds: int):
  """A simulation of so many rounds, from the start."""
  schedule = schedules.schedule(triggers.dense(1), (0,))
  return driver.Simulation(
    data,
    Roles({}, {}, {}),
    [Stage('own', own, rounds, lambda handover: schedule)],
    Options(
      cohort=cifar.COHORT,
      batch_size=cifar.BATCH,
      validation_rows=1,
      unroll=cifar.EACH // cifar.BATCH,
    ),
    run_store=run_store.Memory(),
    observer=observer.Silent(),
  )
