"""The norms of all families."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead


def normed(x, scale, bias, *, eps: float):
  """LayerNorm (arXiv 1607.06450) over the last axis in float32; without a
  bias, RMSNorm (arXiv 1910.07467)."""
  x = x.astype(jnp.float32)
  if bias is not None:
    x = x - jnp.mean(x, -1, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
  x = x * lead(scale.astype(jnp.float32), x)
  return x if bias is None else x + lead(bias.astype(jnp.float32), x)
