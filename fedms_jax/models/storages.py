"""How frozen weights are stored: as they compute, or as int8 with scales."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.core.types import Tree


def quantize(kernel, numpy=jnp):
  """int8 values of kernel [..., d_in, d_out] and their unit [..., d_out]:
  symmetric, one unit for each output channel."""
  unit = numpy.abs(kernel).max(axis=-2) / 127.0
  unit = numpy.where(unit == 0, 1.0, unit).astype('float32')
  values = numpy.round(kernel / unit[..., None, :]).astype('int8')
  return values, unit


def _quantized(tree: Tree, dtype: str) -> Tree:
  """The tree with each `kernel` as int8 beside its `kernel_scale`."""
  if not isinstance(tree, dict):
    return tree.astype(dtype)
  out = {name: _quantized(value, dtype) for name, value in tree.items()}
  if 'kernel' in tree:
    out['kernel'], out['kernel_scale'] = quantize(tree['kernel'])
  return out


def stored(params: Tree, storage: str, dtype: str) -> Tree:
  """Parameters in the types that they are stored in; see `Options`. Scalars
  stay as they are."""
  plain = dtype if storage == 'int8' else storage
  out = jax.tree.map(lambda x: x.astype(plain) if x.size > 1 else x, params)
  if storage == 'int8':
    out['blocks'] = _quantized(params['blocks'], dtype)
  return out
