"""Metrics as sums with counts, so that means of means never arise.

A metric is a float32 array `[..., 2]`: the weighted sum and the weight. Sums
over steps, clients and chunks are plain additions; `mean` divides at the end.
What no mean can say, such as F1, is a `Metric` with sums of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

Sums = dict[str, jnp.ndarray]


class Metric(NamedTuple):
  """A measure of predictions, as a function of sums over rows.

  name: without a slash. sums: (logits of one model, batch) -> float32 array,
  always of the same shape, to which each row of the batch adds its part, and
  rows outside batch['mask'] nothing; what rows, groups of rows, clients and
  devices give is added up. finish: sums of that shape, NumPy float64 -> a
  number, NaN where nothing was counted; or, of a `table`, an array. lower:
  whether less is better. shape: of the sums. It is a static argument of
  compiled programs: make it once, not for each call.
  """

  name: str
  sums: Callable[[Any, dict[str, Any]], Any]
  finish: Callable[[np.ndarray], Any]
  shape: tuple[int, ...] = (2,)
  lower: bool = False
  table: bool = False


def finished(metric: Metric, sums) -> np.ndarray:
  """The values [n] of a metric that is no table, of sums [n, ...]."""
  sums = np.asarray(sums, dtype=np.float64)
  return np.array([float(metric.finish(each)) for each in sums])


def summed(values, weights) -> jnp.ndarray:
  """The metric of values [B] with weights [B]: float32 [2]."""
  chex.assert_rank(values, 1)
  chex.assert_equal_shape([values, weights])
  values = jnp.where(weights > 0, values, 0.0).astype(jnp.float32)
  weights = weights.astype(jnp.float32)
  return jnp.stack([jnp.sum(values * weights), jnp.sum(weights)])


def mean(metric) -> np.ndarray:
  """Sum over weight along the last axis, NaN where nothing was counted."""
  metric = np.asarray(metric, dtype=np.float64)
  chex.assert_axis_dimension(metric, -1, 2)
  total, weight = metric[..., 0], metric[..., 1]
  with np.errstate(invalid='ignore', divide='ignore'):
    return np.where(weight > 0, total / weight, np.nan)


def mean_over_clients(metric) -> float:
  """Mean of the clients' means `[K, 2]`, over clients that counted anything."""
  means = mean(metric)
  counted = np.isfinite(means)
  return float(means[counted].mean()) if counted.any() else float('nan')


def worst_decile(values) -> float:
  """Mean of the lowest tenth of the values (at least one)."""
  values = np.sort(np.asarray(values, dtype=np.float64))
  return float(values[: max(1, len(values) // 10)].mean())
