"""How well models do: scores of clients' predictions, summed over rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fedms_jax.core import columns, compile, metrics, tree
from fedms_jax.core.rounds import CLIENTS, mapped_over, over_clients
from fedms_jax.core.types import Algorithm, Plan, Roles

GROUP_BYTES = 64e6  # of the logits of all models


@compile.jit(static=(0, 6, 7))
def evaluate_chunk(
  algorithm: Algorithm,
  frozen,
  shared,
  personal,
  table,
  rows,
  plan: Plan,
  names: tuple[str, ...] | None,
):
  """Scores and stats of clients on row numbers [K, V]: each float32 [K, 2].

  Row numbers [V] are of all clients, and frozen models see them once.
  names: the predictions that are scored, and computed; None: all.
  """
  return _evaluated_chunk(
    algorithm, frozen, shared, personal, table, rows, plan, names
  )


@compile.jit(static=(0, 6, 7, 8))
def evaluate_spread(
  algorithm, frozen, shared, personal, table, rows, plan: Plan, names, mesh
):
  """`evaluate_chunk` with the clients spread over the devices of a mesh."""

  def one_device(frozen, shared, table, personal, rows):
    return _evaluated_chunk(
      algorithm, frozen, shared, personal, table, rows, plan, names
    )

  whole, split = P(), P(CLIENTS)
  read = split if rows.ndim == 2 else whole
  return mapped_over(mesh, (whole,) * 3 + (split, read), split)(one_device)(
    frozen, shared, table, personal, rows
  )


def _evaluated_chunk(
  algorithm, frozen, shared, personal, table, rows, plan, names
):
  """The body of `evaluate_chunk`."""

  def one(personal, rows):
    roles = Roles(frozen, shared, personal)
    return evaluate(algorithm, roles, table, rows, plan, names)

  if rows.ndim == 1:
    return over_clients(lambda personal: one(personal, rows))(personal)
  return over_clients(one)(personal, rows)


def evaluate(algorithm, roles: Roles, table, rows, plan: Plan, names):
  """Sums over rows [V]: 'score/<name>', 'loss/<name>' and the stats.

  A language model's logits are a vocabulary wide for each token, so its rows
  are taken in groups that fit into `GROUP_BYTES`.
  """

  def group(rows):
    return _evaluated(algorithm, roles, table, rows, plan, names)

  if not algorithm.task.perplexity:
    return group(rows)
  shapes = jax.eval_shape(
    lambda row: _predicted(algorithm, roles, table, row, plan)[1], rows[:1]
  )
  size = max(1, int(GROUP_BYTES // tree.nbytes(shapes.logits)))
  if size >= len(rows):
    return group(rows)
  rows = jnp.pad(rows, (0, -len(rows) % size), constant_values=-1)
  sums = jax.lax.map(group, rows.reshape(-1, size))
  return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


def _predicted(algorithm, roles: Roles, table, rows, plan: Plan):
  """(batch, prediction) of rows [V]."""
  batch = columns.take(table, rows)
  batch = columns.complete(
    algorithm, Roles(roles.frozen, roles.shared, None), batch, plan
  )
  return batch, algorithm.predict(roles, batch, plan)


def _evaluated(algorithm, roles: Roles, table, rows, plan: Plan, names):
  """`evaluate`, on all rows at once."""
  batch, prediction = _predicted(algorithm, roles, table, rows, plan)
  sums = {}
  for name in names or prediction.logits:
    logits = prediction.logits[name]
    values, weights = algorithm.task.score(logits, batch)
    sums[f'score/{name}'] = metrics.summed(values, weights)
    sums[f'loss/{name}'] = metrics.summed(*algorithm.task.loss(logits, batch))
  for name, values in prediction.stats.items():
    sums[name] = metrics.summed(values, batch['mask'])
  return sums
