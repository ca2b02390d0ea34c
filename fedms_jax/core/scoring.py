"""How well models do: scores of clients' predictions, summed over rows."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fedms_jax.core import columns, compile, metrics, token_logits
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.meshes import CLIENTS, mapped_over
from fedms_jax.core.metrics import Metric
from fedms_jax.core.rounds import over_clients
from fedms_jax.core.token_logits import TokenLogits
from fedms_jax.core.types import Batch, Plan, Roles, Task

GROUP_BYTES = 64e6  # of the logits of all models, or of what they are made of


class Look(NamedTuple):
  """What is scored: static. names: the predictions that are scored, and
  computed; None: all. metrics: of each of them."""

  algorithm: Algorithm
  plan: Plan
  names: tuple[str, ...] | None = None
  metrics: tuple[Metric, ...] = ()


@compile.jit(static=(0,))
def evaluate_chunk(look: Look, roles: Roles, table, personal, rows):
  """Sums of clients on row numbers [K, V], see `evaluate`: each [K, ...].

  Args:
    look: static.
    roles: frozen and shared.
    table: columns [M, ...].
    personal: [K, ...].
    rows: int32 [K, V]; [V] are of all clients, and frozen models see them
      once.
  """
  return _evaluated_chunk(look, roles, table, personal, rows)


@compile.jit(static=(0, 5))
def evaluate_spread(look: Look, roles: Roles, table, personal, rows, mesh):
  """`evaluate_chunk` with the clients spread over the devices of a mesh."""

  def one_device(roles, table, personal, rows):
    return _evaluated_chunk(look, roles, table, personal, rows)

  whole, split = P(), P(CLIENTS)
  read = split if rows.ndim == 2 else whole
  return mapped_over(mesh, (whole, whole, split, read), split)(one_device)(
    roles._replace(personal=None), table, personal, rows
  )


def _evaluated_chunk(look: Look, roles: Roles, table, personal, rows):
  """The body of `evaluate_chunk`."""

  def one(personal, rows):
    return evaluate(look, roles._replace(personal=personal), table, rows)

  if rows.ndim == 1:
    return over_clients(lambda personal: one(personal, rows))(personal)
  return over_clients(one)(personal, rows)


def evaluate(look: Look, roles: Roles, table, rows):
  """Sums over rows [V]: 'score/<name>', 'loss/<name>' and the stats, float32
  [2] each, and 'metric/<metric>/<name>' of the shape of the metric.

  A language model's logits are a vocabulary wide for each token, or made of
  features of each token, so its rows are taken in groups that fit into
  `GROUP_BYTES`.
  """

  def group(rows):
    return _evaluated(look, roles, table, rows)

  if not look.algorithm.task.perplexity:
    return group(rows)
  shapes = jax.eval_shape(
    lambda rows: _predicted(look, roles, table, rows)[1], rows
  )
  each = sum(map(token_logits.nbytes, shapes.logits.values())) / len(rows)
  size = max(1, int(GROUP_BYTES // each))
  if size >= len(rows):
    return group(rows)
  rows = jnp.pad(rows, (0, -len(rows) % size), constant_values=-1)
  sums = jax.lax.map(group, rows.reshape(-1, size))
  return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


def _predicted(look: Look, roles: Roles, table, rows):
  """(batch, prediction) of rows [V]."""
  batch = columns.take(table, rows)
  batch = columns.complete(
    look.algorithm, roles._replace(personal=None), batch, look.plan
  )
  return batch, look.algorithm.predict(roles, batch, look.plan)


def _evaluated(look: Look, roles: Roles, table, rows):
  """`evaluate`, on all rows at once."""
  batch, prediction = _predicted(look, roles, table, rows)
  task, sums = look.algorithm.task, {}
  names = list(look.names or prediction.logits)
  several = [prediction.logits[name] for name in names]
  for name, logits, (loss, score) in zip(
    names, several, _measured(task, several, batch), strict=True
  ):
    sums[f'score/{name}'] = metrics.summed(*score)
    sums[f'loss/{name}'] = metrics.summed(*loss)
    for metric in look.metrics:
      sums[f'metric/{metric.name}/{name}'] = metric.sums(logits, batch)
  for name, values in prediction.stats.items():
    sums[name] = metrics.summed(values, batch['mask'])
  return sums


def _measured(task: Task, several: list, batch: Batch) -> list:
  """(loss, score) of each of several logits, in one pass if it can be one."""
  if task.together and isinstance(several[0], TokenLogits):
    return task.together(several, batch)[1]
  return [(task.loss(x, batch), task.score(x, batch)) for x in several]
