"""The linear head: float32 logits of pooled features."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.base import Tree


def init(key, width: int, classes: int) -> Tree:
  kernel = 0.02 * jax.random.normal(key, (width, classes))
  return {'kernel': kernel, 'bias': jnp.zeros(classes)}


def apply(head: Tree, features):
  """Logits [B, C] of features [B, D], in float32."""
  return features.astype(jnp.float32) @ head['kernel'] + head['bias']
