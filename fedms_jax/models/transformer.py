"""The one transformer block of all models, stacked `[L, ...]` and scanned.

A family of models is a `TransformerConfig`, a stem, a head and a table of
names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Adapter, Span, Tree
from fedms_jax.models import attention
from fedms_jax.models.layers import (
  ACTIVATIONS,
  ADAPTER,
  Dense,
  Norm,
  recomputed,
)
from fedms_jax.models.rotary import Scaling, rotate


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """What distinguishes the blocks of one family from those of another.

  layer_scale: what attention and MLP give is multiplied by a vector [D]
  before it is added (CaiT, arXiv 2103.17239). norm: `rms_offset` is an
  RMSNorm that multiplies by 1 + scale. branch_norms: what attention and MLP
  give is normed too, before it is added. qk_norm: each query and key is
  normed, over Dh. gated: the MLP is `down(act(gate(x)) * up(x))`.
  attention_scale, attention_cap: see `attention.attend`. rotary: base of the
  rotary angles, 0 without; rotary_width: how many of the Dh are turned, 0:
  all. local: which blocks are so; their positions see those less than
  `window` places away, and turn by the base `rotary_local`, unscaled, if
  there is one. unroll: blocks of a span that is no loop; a few compile as
  fast as a loop.
  """

  blocks: int
  width: int
  heads: int
  mlp_width: int
  kv_heads: int = 0  # 0: as many as heads
  head_width: int = 0  # 0: width / heads
  norm: str = 'layer'  # layer, rms, rms_offset
  norm_eps: float = 1e-6
  pre_norm: bool = True
  branch_norms: bool = False
  qk_norm: bool = False
  layer_scale: bool = False
  activation: str = 'gelu'  # gelu, gelu_tanh, quick_gelu, silu, relu
  gated: bool = False
  causal: bool = False
  rotary: float = 0.0
  rotary_scaling: Scaling = Scaling()
  rotary_width: int = 0
  rotary_local: float = 0.0
  local: tuple[bool, ...] = ()
  window: int = 0
  attention_scale: float = 0.0
  attention_cap: float = 0.0
  qkv_bias: bool = True
  out_bias: bool = True
  mlp_bias: bool = True
  dtype: str = 'float32'
  remat: bool = False
  unroll: int = 3

  @property
  def groups(self) -> int:
    """Number of key and value heads."""
    return self.kv_heads or self.heads

  @property
  def per_head(self) -> int:
    """Width of one attention head."""
    return self.head_width or self.width // self.heads

  def differ(self, tokens: int) -> bool:
    """Whether local blocks compute anything else at so many tokens."""
    return any(self.local) and bool(self.rotary_local or self.window < tokens)


def _angles(c: TransformerConfig, tokens: int, local):
  """Angles per position of a block's rotary pairs, float32 [half]."""
  half = (c.rotary_width or c.per_head) // 2
  angles = c.rotary_scaling.frequencies(half, c.rotary, tokens)
  if local is None or not c.rotary_local:
    return angles
  plain = Scaling().frequencies(half, c.rotary_local, tokens)
  return jnp.where(local, plain, angles)


class Attention(nn.Module):
  config: TransformerConfig
  adapter: Adapter | None = None

  @nn.compact
  def __call__(self, x, mask, local=None, reads=None):
    c, asking = self.config, x[:, :reads]

    def dense(name, features, bias):
      return Dense(features, bias, c.dtype, self.adapter, name=name)

    def heads(name, count, x):
      y = dense(name, count * c.per_head, c.qkv_bias)(x)
      return y.reshape(*y.shape[:-1], count, c.per_head)

    q, k = heads('q', c.heads, asking), heads('k', c.groups, x)
    v = heads('v', c.groups, x)
    if c.qk_norm:
      q = Norm(c.norm, c.norm_eps, c.dtype, name='norm_q')(q)
      k = Norm(c.norm, c.norm_eps, c.dtype, name='norm_k')(k)
    tokens, window = x.shape[1], None
    own = self.variables.get(ADAPTER, {}).get('prefix')
    if c.rotary:
      first = 0 if own is None else len(own['k'])
      angles = _angles(c, first + tokens, local)
      gain = c.rotary_scaling.gain
      q, k = (rotate(y, angles, gain, first) for y in (q, k))
    if local is not None:
      window = jnp.where(local, min(c.window, tokens), tokens)
    before = None
    if own is not None and self.adapter is not None:
      k, v, before = self.adapter.apply(own, q, (k, v))
    y = attention.attend(
      q,
      k,
      v,
      mask,
      causal=c.causal,
      scale=c.attention_scale,
      cap=c.attention_cap,
      window=window,
      before=before,
    )
    return dense('o', c.width, c.out_bias)(y.reshape(*asking.shape[:-1], -1))


class Mlp(nn.Module):
  config: TransformerConfig
  adapter: Adapter | None = None

  @nn.compact
  def __call__(self, x):
    c = self.config

    def dense(name, features):
      return Dense(features, c.mlp_bias, c.dtype, self.adapter, name=name)

    y = dense('up', c.mlp_width)(x)
    activation = recomputed(ACTIVATIONS[c.activation])
    if c.gated:
      y = activation(dense('gate', c.mlp_width)(x)) * y
    else:
      y = activation(y)
    return dense('down', c.width)(y)


class Block(nn.Module):
  """Attention and MLP with residuals; pre-norm, or post-norm as in BERT.

  reads: how many tokens, the first ones, are wanted of what comes out: [B,
  reads, D]; None: all. Of the others only keys and values are computed.
  """

  config: TransformerConfig
  adapter: Adapter | None = None

  @nn.compact
  def __call__(self, x, mask, local=None, reads=None):
    c, own = self.config, x[:, :reads]
    norm1 = Norm(c.norm, c.norm_eps, c.dtype, name='norm1')
    norm2 = Norm(c.norm, c.norm_eps, c.dtype, name='norm2')
    attn = Attention(c, self.adapter, name='attn')
    mlp = Mlp(c, self.adapter, name='mlp')
    if c.branch_norms:
      after1 = Norm(c.norm, c.norm_eps, c.dtype, name='norm1_after')
      after2 = Norm(c.norm, c.norm_eps, c.dtype, name='norm2_after')
      x = own + after1(attn(norm1(x), mask, local, reads))
      return x + after2(mlp(norm2(x)))
    if c.pre_norm:
      y = attn(norm1(x), mask, local, reads)
      x = own + self._scaled('layer_scale1', y)
      return x + self._scaled('layer_scale2', mlp(norm2(x)))
    x = norm1(own + attn(x, mask, local, reads))
    return norm2(x + mlp(x))

  def _scaled(self, name: str, x):
    if not self.config.layer_scale:
      return x
    scale = self.param(name, nn.initializers.ones, x.shape[-1:])
    return x * lead(scale.astype(x.dtype), x)


def normalize(config: TransformerConfig, params: Tree, x, dtype='') -> Any:
  """The family's norm outside of its blocks, in `dtype` or the compute type."""
  norm = Norm(config.norm, config.norm_eps, dtype or config.dtype)
  return cast(jax.Array, norm.apply({'params': params}, x))


def init_blocks(config: TransformerConfig, key) -> Tree:
  """Parameters of all blocks, stacked: every leaf is [L, ...] float32."""
  x = jnp.zeros((1, 1, config.width), config.dtype)
  keys = jax.random.split(key, config.blocks)
  return jax.vmap(lambda k: Block(config).init(k, x, None)['params'])(keys)


def run(
  config: TransformerConfig,
  spans: Sequence[Span],
  x,
  mask=None,
  adapter: Adapter | None = None,
  reads: int | None = None,
) -> jax.Array:
  """Runs x [B, T, D] through spans of blocks, one `lax.scan` each; a span of
  few blocks is no loop, which would copy what it keeps in and out.

  Each span's params are a pair (weights, what adapts them), both `[n, ...]`;
  the latter may be None. mask: bool [B, T], True where a token exists; None:
  everywhere. adapter: whose parameters those are. reads: how many tokens, the
  first ones, are wanted of what comes out of the last block, [B, reads, D];
  None: all of them. Where a span begins above the first block, that block
  computes no others. (A loop over all blocks but one would need a copy of their
  weights; above that, there is one in any case.)

  Raises:
    ValueError: there are such parameters, and no adapter that applies them.
  """

  def apply(x, own, reads=None):
    (weights, added), local = own
    variables = {'params': weights}
    if added is not None:
      variables[ADAPTER] = added
    block = Block(config, adapter)
    # One value, because nothing of the variables is mutable.
    return cast(jax.Array, block.apply(variables, x, mask, local, reads))

  if config.remat:
    apply = jax.checkpoint(apply, static_argnums=2)
  differ = config.differ(x.shape[1])
  for number, span in enumerate(spans, 1):
    if adapter is None and span.params[1] is not None:
      raise ValueError(
        f'blocks {span.start} to {span.stop - 1} come with parameters of an '
        'adapter, and the backbone has none that applies them. Take '
        '`backbone.adapted(spec)`.'
      )
    local = None
    if differ:
      local = jnp.asarray(config.local[span.start : span.stop])
    own, count = (span.params, local), span.stop - span.start
    if reads is None or number < len(spans) or (not span.start and count > 1):
      x = _scanned(apply, x, own, count, config.unroll)
      continue
    if count > 1:
      below = jax.tree.map(lambda p: p[:-1], own)
      x = _scanned(apply, x, below, count - 1, config.unroll)
    x = apply(x, jax.tree.map(lambda p: p[-1], own), reads)
  return x[:, :reads]


def _scanned(apply, x, own, count: int, unroll: int):
  """x through `count` blocks, whose parameters are stacked."""

  def step(x, own):
    return apply(x, own, None), None

  return jax.lax.scan(step, x, own, unroll=count if count <= unroll else 1)[0]
