"""The linear layer outside of blocks: heads, poolers, projections."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.core.types import Tree


def init(key, width: int, classes: int, bias: bool = True) -> Tree:
  params = {'kernel': 0.02 * jax.random.normal(key, (width, classes))}
  return params | {'bias': jnp.zeros(classes)} if bias else params


def apply(params: Tree, x, dtype: str = 'float32'):
  """`x @ kernel + bias` of features [..., D], in `dtype`."""
  y = x.astype(dtype) @ params['kernel'].astype(dtype)
  return y + params['bias'].astype(dtype) if 'bias' in params else y
