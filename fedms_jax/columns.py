"""Derived columns: what depends on frozen values alone is computed once.

A table is a dict of arrays `[M, ...]`; a batch holds the rows of one step.
Raw columns come from the data, derived ones from `Algorithm.columns`. Whether
a derived column is looked up (scope `run` or `round`) or computed in the step
(scope `step`) is decided by its presence in the table; the numbers agree.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.base import Algorithm, Batch, Plan, Roles, Tree

SCOPES = ('run', 'round', 'step')


def take(table: dict[str, jax.Array], rows) -> Batch:
  """The batch of row numbers [B]; negative ones are padding (mask False).

  Padding repeats row 0, so that no value depends on what padding holds.
  """
  safe = jnp.maximum(rows, 0)
  batch = {name: column[safe] for name, column in table.items()}
  batch['mask'] = rows >= 0
  return batch


def inputs(batch: Batch):
  """What a model reads: the inputs, with their captions if there are any;
  None in a batch that holds derived columns alone."""
  if 'texts' in batch:
    return {'image': batch['inputs'], 'text': batch['texts']}
  return batch.get('inputs')


def complete(algorithm: Algorithm, roles: Roles, batch: Batch, plan: Plan):
  """The batch with its derived columns, computed if the table lacks them."""
  if all(name in batch for name in algorithm.derived):
    return batch
  return batch | jax.lax.stop_gradient(algorithm.columns(roles, batch, plan))


def shapes(algorithm: Algorithm, roles: Roles, raw: Batch, plan: Plan) -> Tree:
  """Shapes of the derived columns of a raw batch."""
  return jax.eval_shape(lambda r, b: algorithm.columns(r, b, plan), roles, raw)


def pick_scope(
  wanted: str, run_bytes: int, round_bytes: int, budget: int
) -> str:
  """The longest scope whose columns fit the budget, unless one is wanted."""
  if wanted != 'auto':
    return wanted
  if run_bytes <= budget:
    return 'run'
  return 'round' if round_bytes <= budget else 'step'
