"""What one block of a transformer costs, from its shapes alone."""

from __future__ import annotations

import jax.numpy as jnp

from fedms_jax.core.costs import BackboneCost, BlockCost
from fedms_jax.models.transformer import TransformerConfig

# Inner values [T, mlp_width] of a nonlinearity that XLA keeps where a block is
# no loop: it takes the recomputation for the same as the forward pass and does
# it once. Measured by its `memory_analysis`.
_LOOSE = {
  'gelu': 2.6,
  'gelu_tanh': 4.1,
  'quick_gelu': 1.0,
  'silu': 1.2,
  'relu': 0.5,
}


def transformer(
  config: TransformerConfig,
  tokens: int,
  stem: float,
  head: float,
  vocabulary: int = 0,
  reads: int | None = None,
):
  """`BackboneCost` of a model with these blocks at T = `tokens`. reads: see
  `transformer.run`.

  FLOPs of matrix products only. The activations kept for the backward pass
  are the inputs of every product, norm and nonlinearity.
  """
  c = config
  queries, keys = c.heads * c.per_head, c.groups * c.per_head
  mlp_kernels = 3 if c.gated else 2
  weights = c.width * (2 * queries + 2 * keys + mlp_kernels * c.mlp_width)
  attention = 2 * tokens * queries
  values = tokens * (4 * c.width + 2 * queries + 2 * keys)
  values += tokens * (4 if c.gated else 2) * c.mlp_width
  values += c.heads * tokens**2
  values += tokens * c.qk_norm * (queries + keys)
  values += tokens * c.branch_norms * 2 * c.width
  loose = tokens * (_LOOSE[c.activation] * c.mlp_width + 2.8 * c.width)
  size = float(jnp.dtype(c.dtype).itemsize)
  spared = {
    'attn/o': tokens * queries,
    'mlp/up': tokens * c.width,
    'mlp/down': tokens * c.mlp_width,
  }
  return BackboneCost(
    stem=stem,
    block=2.0 * tokens * (weights + attention),
    head=head,
    tokens=tokens,
    activation=values * size,
    spared=tuple((name, x * size) for name, x in spared.items()),
    loose=(loose + c.heads * tokens**2) * size,
    unroll=0 if c.remat else c.unroll,
    work=tokens * max(3.0 * c.mlp_width - 1.5 * c.width, 0.0) * size,
    vocabulary=vocabulary,
    last=None if reads is None else _last(c, tokens, reads),
  )


def _last(c: TransformerConfig, tokens: int, reads: int) -> BlockCost:
  """A block that gives but its first tokens: of all others it computes keys
  and values. What the few keep is nothing beside that."""
  queries, keys = c.heads * c.per_head, c.groups * c.per_head
  mlp_kernels = 3 if c.gated else 2
  few = c.width * (2 * queries + mlp_kernels * c.mlp_width)
  all_ = 2 * c.width * keys + 2 * reads * queries
  values = tokens * (2 * c.width + 2 * keys) + c.heads * reads * tokens
  size = float(jnp.dtype(c.dtype).itemsize)
  return BlockCost(2.0 * (reads * few + tokens * all_), values * size)
