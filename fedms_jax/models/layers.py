"""The layers of a block: a linear one with room for an adapter, and norms.

What adapts a block is a second variable collection: `Dense` hands its part to
the adapter (`core.types.Adapter`) beside the frozen kernel, and never merges it
(merging would copy the kernel for each client under `vmap`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Adapter
from fedms_jax.models import linear, norms

ACTIVATIONS = {
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: nn.gelu(x, approximate=True),
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
  'silu': nn.silu,
  'relu': nn.relu,
}


ADAPTER = 'adapter'  # the collection of what adapts the blocks


class Dense(nn.Module):
  """A linear layer, with an adapter where there are parameters of one.

  A frozen kernel may be int8; `kernel_scale` [d_out] then gives its unit.
  """

  features: int
  use_bias: bool
  dtype: str
  adapter: Adapter | None = None

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.xavier_uniform(), shape)
    y = linear.product(x, kernel, self.dtype)
    if self.has_variable('params', 'kernel_scale'):
      unit = self.get_variable('params', 'kernel_scale')
      y = y * lead(unit.astype(self.dtype), y)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, shape[1:])
      y = y + lead(bias.astype(self.dtype), y)
    if self.adapter is not None:
      if params := self.variables.get(ADAPTER):
        y = self.adapter.apply(params, x, y)
    return y


def recomputed(function: Callable) -> Callable:
  """The function, of which the backward pass keeps nothing but the inputs.

  For what costs little beside a matrix product. JAX keeps an array for every
  derivative on the way: for the norms and nonlinearities of a ViT that is as
  much again as all that the products need.
  """
  return jax.checkpoint(function, prevent_cse=False)


class Norm(nn.Module):
  """LayerNorm or RMSNorm, computed in float32; see `TransformerConfig`."""

  kind: str
  eps: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1:]
    offset = self.kind == 'rms_offset'
    start = nn.initializers.zeros if offset else nn.initializers.ones
    scale = self.param('scale', start, width)
    if offset:
      scale = 1.0 + scale.astype(jnp.float32)
    bias = None
    if self.kind == 'layer':
      bias = self.param('bias', nn.initializers.zeros, width)
    norm = recomputed(functools.partial(norms.normed, eps=self.eps))
    return norm(x, scale, bias).astype(self.dtype)
