"""Scaled dot-product attention; the one place that picks its implementation.

`jax.nn.dot_product_attention` never picks cuDNN's flash attention by itself
and raises where it does not serve, so what it serves is written down here:
https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html,
https://docs.nvidia.com/cudnn/frontend/latest/operations/Attention.html.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead


class Device(NamedTuple):
  """Where attention runs. backend: of JAX. capability: compute capability of
  an NVIDIA GPU, (0, 0) of anything else."""

  backend: str
  capability: tuple[int, int] = (0, 0)


@functools.cache
def device() -> Device:
  """The device of this process."""
  backend = jax.default_backend()
  first = jax.local_devices()[0]
  # Others that call themselves gpu give names such as gfx90a here.
  major, dot, minor = str(getattr(first, 'compute_capability', '')).partition(
    '.'
  )
  if backend == 'gpu' and dot and (major + minor).isdigit():
    return Device(backend, (int(major), int(minor)))
  return Device(backend)


_split: list[bool] = []


def leave_to_compiler() -> None:
  """Takes no cuDNN from here on, because heads are split over devices: JAX
  cannot partition its attention inside of a `shard_map` over other axes, nor
  where queries are split and keys, being fewer, are not."""
  _split.append(True)


def choose(where: Device, dtype, per_head: int, split: bool = False) -> str:
  """The fastest implementation that takes this type and width of a head.

  cuDNN's flash attention is for half precision, on Ampere or newer, and for
  heads of a multiple of 8 up to 128 (256 from Hopper on). Any number of
  tokens will do, see `_cudnn`. split: see `leave_to_compiler`.
  """
  if where.backend == 'cpu':
    return 'matmuls'
  widest = 256 if where.capability >= (9, 0) else 128
  half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
  fits = per_head % 8 == 0 and per_head <= widest and not split
  return 'cudnn' if half and fits and where.capability >= (8, 0) else 'xla'


def attend(
  q, k, v, mask=None, *, causal: bool = False, scale: float = 0.0,
  cap: float = 0.0, window=None, before=None,
):  # fmt: skip
  """Softmax attention by the implementation that suits the device.

  Args:
    q: queries [B, Q, H, Dh] of the first Q tokens; mostly Q = T.
    k: keys [B, T, G, Dh] with G dividing H (grouped-query attention).
    v: values [B, T, G, Dh].
    mask: bool [B, T], True for tokens and False for the padding, which comes
      after them; None: no padding.
    causal: whether a position sees only itself and what comes before it.
    scale: of the scores; 0: Dh to the power of -1/2.
    cap: scores s become cap tanh(s / cap) (Gemma 2, arXiv 2408.00118); 0: not.
    window: int32 scalar; a position sees those that are less than so many
      places away. None: all.
    before: bool [P]; the first P of P + T keys and values stand before the
      tokens, and all positions see those of them that are True, whatever else
      they see. None: there are none.

  Returns:
    [B, Q, H, Dh] in the type of `q`; at padding, finite values.
  """
  chex.assert_rank([q, k, v], 4)
  chex.assert_equal_shape([k, v])
  first = 0 if before is None else len(before)
  tokens = k.shape[1] - first
  chex.assert_shape(q, (k.shape[0], None, None, k.shape[3]))
  chex.assert_axis_dimension_lteq(q, 1, tokens)
  if mask is not None:
    chex.assert_shape(mask, (k.shape[0], tokens))
  chosen = choose(device(), q.dtype, q.shape[-1], bool(_split))
  if cap or before is not None or q.shape[1] < tokens:
    # No fused implementation has the cap, or takes more keys than queries
    # behind a causal mask; of a few queries none is faster.
    return _matmuls(q, k, v, mask, causal, scale, window, cap, before)
  if window is not None and chosen == 'cudnn':
    chosen = 'xla'  # cuDNN takes no window that only the device knows
  return IMPLEMENTATIONS[chosen](q, k, v, mask, causal, scale, window)


def _near(queries: int, tokens: int, window):
  """Which position sees which by its window, bool [Q, T]."""
  places = jnp.arange(tokens)
  return jnp.abs(places[:queries, None] - places[None]) < window


def _cudnn(q, k, v, mask, causal, scale=0.0, window=None):
  """Flash attention. The mask goes as lengths: as a mask it would be an array
  [B, H, T, T], which is what flash attention avoids.

  JAX refuses to differentiate an odd number of tokens, so such a sequence gets
  one more at its end. The lengths of the keys hide it from all others, or
  causality does.
  """
  assert window is None
  tokens = q.shape[1]
  held = ()  # of the keys
  if mask is not None:
    held = (jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1),)
  if tokens % 2:
    if not held and not causal:
      held = (jnp.full(q.shape[:1], tokens, jnp.int32),)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
  # All queries, those of padding too, see something: they stay finite.
  lengths = *(jnp.full_like(x, q.shape[1]) for x in held), *held
  # Under `vmap` this call wants the mapped axis on all of its arrays or none,
  # but a key without LoRA may have none where a query has. XLA drops the sum.
  seen = q[0, 0, 0, 0] + k[0, 0, 0, 0] + v[0, 0, 0, 0] > 0
  if lengths:
    seen &= lengths[-1][0] > 0
  zero = 0 * seen.astype(jnp.int32)
  q, k, v, *lengths = (x + zero.astype(x.dtype) for x in (q, k, v, *lengths))
  names = ('query_seq_lengths', 'key_value_seq_lengths')
  out = jax.nn.dot_product_attention(
    q,
    k,
    v,
    scale=scale or None,
    is_causal=causal,
    implementation='cudnn',
    **dict(zip(names, lengths, strict=False)),
  )
  return out[:, :tokens]


def _xla(q, k, v, mask, causal, scale=0.0, window=None):
  """What XLA fuses by itself."""
  if mask is not None:
    mask = mask[:, None, None, :]
  if window is not None:
    near = _near(q.shape[1], q.shape[1], window)[None, None]
    mask = near if mask is None else mask & near
  return jax.nn.dot_product_attention(
    q,
    k,
    v,
    mask=mask,
    scale=scale or None,
    is_causal=causal,
    implementation='xla',
  )


def _matmuls(
  q, k, v, mask, causal, scale=0.0, window=None, cap=0.0, before=None
):
  """Two batched matmuls: 10 % faster than the fused call on XLA:CPU."""
  queries, groups = q.shape[1], k.shape[2]
  tokens = k.shape[1] - (0 if before is None else len(before))
  if groups != q.shape[2]:
    k = jnp.repeat(k, q.shape[2] // groups, axis=2)
    v = jnp.repeat(v, q.shape[2] // groups, axis=2)
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  seen = jnp.ones((1, 1, 1, 1), bool)
  if mask is not None:
    seen = mask[:, None, None, :]
  if causal:
    seen = seen & lead(jnp.tri(queries, tokens, dtype=bool), seen)
  if window is not None:
    seen = seen & lead(_near(queries, tokens, window), seen)
  if before is not None:
    seen = _behind(before, seen, tokens)
  q = q * (scale or q.shape[-1] ** -0.5)
  if cap:
    y = _weighed_forward(q, k, v, seen, cap)[0]
  else:
    y = _weighed(q, k, v, seen)
  return jnp.swapaxes(y, 1, 2)


def _behind(before, seen, tokens: int):
  """Which keys are seen [B or 1, 1, T or 1, P + T], with those before."""
  rows = *seen.shape[:-1], tokens
  first = *seen.shape[:-1], len(before)
  return jnp.concatenate(
    [jnp.broadcast_to(lead(before, seen), first), jnp.broadcast_to(seen, rows)],
    axis=-1,
  )


@jax.custom_vjp
def _weighed(q, k, v, seen):
  """softmax(q k^T) v of q [B, H, Q, Dh] and k, v [B, H, T, Dh]; seen: bool,
  broadcast to scores."""
  return _weighed_forward(q, k, v, seen)[0]


def _weighed_forward(q, k, v, seen, cap=0.0):
  scores = (q @ jnp.swapaxes(k, -1, -2)).astype(jnp.float32)
  if cap:
    scores = cap * jnp.tanh(scores / cap)
  # A finite floor, so that a row whose keys are all masked stays finite.
  scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min / 2)
  weights = jax.nn.softmax(scores, axis=-1)
  return weights.astype(v.dtype) @ v, (q, k, v, weights)


def _weighed_backward(kept, dy):
  """As autodiff has it, but for transposes that are made: XLA:CPU's fast
  matmuls take no transposed left side, and its own cost 5 % of a step."""
  q, k, v, weights = kept
  dv = _transposed(weights.astype(v.dtype)) @ dy
  dw = (dy @ jnp.swapaxes(v, -1, -2)).astype(jnp.float32)
  ds = weights * (dw - jnp.sum(dw * weights, axis=-1, keepdims=True))
  ds = ds.astype(q.dtype)
  return ds @ k, _transposed(ds) @ q, dv, None


def _transposed(x):
  return jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))


_weighed.defvjp(_weighed_forward, _weighed_backward)

IMPLEMENTATIONS = {'cudnn': _cudnn, 'xla': _xla, 'matmuls': _matmuls}
