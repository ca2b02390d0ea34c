"""Aggregators: how the server merges what the clients send."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax import tree
from fedms_jax.base import Aggregator


def divide(total, weights):
  """Sums over weights; a stacked key has one weight per block (coverage)."""
  out = {}
  for key, value in total.items():
    weight = jnp.maximum(weights[key], 1e-12)

    def ratio(x, weight=weight):
      return x / weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))

    out[key] = jax.tree.map(ratio, value)
  return out


def mean() -> Aggregator:
  """The sample-weighted mean (FedAvg, arXiv 1602.05629), per block over the
  clients that held it active. Sums are of differences, which keeps their
  rounding small."""

  def contribute(before, after, weight):
    return tree.scale(tree.subtract(after, before), weight)

  def merge(before, total, weights):
    return tree.add(before, divide(total, weights))

  return Aggregator(contribute, 'sum', merge)
