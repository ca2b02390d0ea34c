"""One feature of a sequence of tokens."""

from __future__ import annotations

import jax.numpy as jnp


def last(x, mask):
  """The last token of each sequence that the mask [B, T] has: [B, D]."""
  places = jnp.arange(mask.shape[1])
  place = jnp.max(jnp.where(mask, places, 0), axis=1)
  return jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]


def mean(x, mask):
  """Mean of the tokens that the mask [B, T] has, float32 [B, D]."""
  weights = mask.astype(jnp.float32)[..., None]
  total = jnp.sum(x.astype(jnp.float32) * weights, axis=1)
  return total / jnp.maximum(jnp.sum(weights, axis=1), 1.0)
