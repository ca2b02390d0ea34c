"""Derived columns: what depends on frozen values alone is computed once.

A table is a dict of arrays `[M, ...]`; a batch holds the rows of one step.
Raw columns come from the data, derived ones from `Algorithm.columns`. Whether
a derived column is looked up (scope `run` or `round`) or computed in the step
(scope `step`) is decided by its presence in the table; the numbers agree.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Batch, Plan, Roles, Tree


class Choice(NamedTuple):
  """How long derived columns live: scope `run`, `round` or `step`, and where
  those of a whole run lie: place `device` or `host`."""

  scope: str
  place: str = 'device'


class Sizes(NamedTuple):
  """Bytes: of the derived columns of all rows, of the raw columns of all
  rows, and of both for the rows of one round."""

  derived: int
  raw: int
  round: int


def take(table: dict[str, jax.Array], rows) -> Batch:
  """The batch of row numbers [B]; negative ones are padding (mask False).

  Padding repeats row 0, so that no value depends on what padding holds.
  """
  chex.assert_rank(rows, 1)
  safe = jnp.maximum(rows, 0)
  batch = {name: column[safe] for name, column in table.items()}
  batch['mask'] = rows >= 0
  return batch


def inputs(batch: Batch):
  """What a model reads: the inputs, with their captions, or with what of an
  image is hidden, if there are any; None in a batch that holds derived columns
  alone."""
  if 'texts' in batch:
    return {'image': batch['inputs'], 'text': batch['texts']}
  if 'hidden' in batch and batch['inputs'].ndim == 4:
    return {'image': batch['inputs'], 'hidden': batch['hidden']}
  return batch.get('inputs')


def complete(algorithm: Algorithm, roles: Roles, batch: Batch, plan: Plan):
  """The batch with its derived columns, computed if the table lacks them."""
  if all(name in batch for name in algorithm.derived):
    return batch
  return batch | jax.lax.stop_gradient(algorithm.columns(roles, batch, plan))


def shapes(algorithm: Algorithm, roles: Roles, raw: Batch, plan: Plan) -> Tree:
  """Shapes of the derived columns of a raw batch."""
  return jax.eval_shape(lambda r, b: algorithm.columns(r, b, plan), roles, raw)


def choose(
  scope: str, place: str, sizes: Sizes, device: float, host: float
) -> Choice:
  """The longest scope that fits, on the device before in host memory.

  scope, place: what is wanted, 'auto' for what fits. device, host: budgets in
  bytes. What is sent each round counts twice on the device, because the next
  round's is sent while this one runs. Raises `ValueError` if the scope `run`
  is wanted and fits nowhere.
  """
  resident = sizes.derived + sizes.raw <= device
  sent = 2 * sizes.round <= device
  if scope in ('auto', 'run'):
    wanted = scope == 'run' and place != 'auto'
    if place != 'host' and (resident or wanted):
      return Choice('run')
    kept = sizes.derived <= host and (sent or scope == 'run')
    if place != 'device' and (kept or wanted):
      return Choice('run', 'host')
  if scope == 'run':
    raise ValueError(
      f'`Options.scope`=run needs {sizes.derived + sizes.raw:.3g} bytes on the '
      f'device, where {device:.3g} are allowed, or {sizes.derived:.3g} in host '
      f'memory, where {host:.3g} are. Raise `Options.budget` or '
      '`Options.host_budget`, or choose `Options.scope`=auto.'
    )
  if scope == 'auto':
    scope = 'round' if sent else 'step'
  return Choice(scope)
