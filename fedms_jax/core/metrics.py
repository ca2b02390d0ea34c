"""Metrics as sums with counts, so that means of means never arise.

A metric is a float32 array `[..., 2]`: the weighted sum and the weight. Sums
over steps, clients and chunks are plain additions; `mean` divides at the end.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np

Sums = dict[str, jnp.ndarray]


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
