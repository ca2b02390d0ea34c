"""The one transformer block of all models, stacked `[L, ...]` and scanned.

A family of models is a `TransformerConfig`, a stem, a head and a table of
names. What adapts a block is a second variable collection: `Dense` hands its
part to the adapter (`core.types.Adapter`) beside the frozen kernel, and never
merges it (merging would copy the kernel for each client under `vmap`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Adapter, Span, Tree
from fedms_jax.models import attention, linear, norms
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
  def __call__(self, x, mask, local=None):
    c = self.config

    def dense(name, features, bias):
      return Dense(features, bias, c.dtype, self.adapter, name=name)

    def heads(name, count):
      y = dense(name, count * c.per_head, c.qkv_bias)(x)
      return y.reshape(*y.shape[:-1], count, c.per_head)

    q, k = heads('q', c.heads), heads('k', c.groups)
    v = heads('v', c.groups)
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
    return dense('o', c.width, c.out_bias)(y.reshape(*x.shape[:-1], -1))


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
  """Attention and MLP with residuals; pre-norm, or post-norm as in BERT."""

  config: TransformerConfig
  adapter: Adapter | None = None

  @nn.compact
  def __call__(self, x, mask, local=None):
    c = self.config
    norm1 = Norm(c.norm, c.norm_eps, c.dtype, name='norm1')
    norm2 = Norm(c.norm, c.norm_eps, c.dtype, name='norm2')
    attn = Attention(c, self.adapter, name='attn')
    mlp = Mlp(c, self.adapter, name='mlp')
    if c.branch_norms:
      after1 = Norm(c.norm, c.norm_eps, c.dtype, name='norm1_after')
      after2 = Norm(c.norm, c.norm_eps, c.dtype, name='norm2_after')
      x = x + after1(attn(norm1(x), mask, local))
      return x + after2(mlp(norm2(x)))
    if c.pre_norm:
      x = x + self._scaled('layer_scale1', attn(norm1(x), mask, local))
      return x + self._scaled('layer_scale2', mlp(norm2(x)))
    x = norm1(x + attn(x, mask, local))
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
) -> jax.Array:
  """Runs x [B, T, D] through spans of blocks, one `lax.scan` each; a span of
  few blocks is no loop, which would copy what it keeps in and out.

  Each span's params are a pair (weights, what adapts them), both `[n, ...]`;
  the latter may be None. mask: bool [B, T], True where a token exists; None:
  everywhere. adapter: whose parameters those are.

  Raises:
    ValueError: there are such parameters, and no adapter that applies them.
  """

  differ = config.differ(x.shape[1])

  def apply(x, own):
    (weights, added), local = own
    variables = {'params': weights}
    if added is not None:
      variables[ADAPTER] = added
    block = Block(config, adapter)
    # One value, because nothing of the variables is mutable.
    return cast(jax.Array, block.apply(variables, x, mask, local)), None

  if config.remat:
    apply = jax.checkpoint(apply)
  for span in spans:
    if adapter is None and span.params[1] is not None:
      raise ValueError(
        f'blocks {span.start} to {span.stop - 1} come with parameters of an '
        'adapter, and the backbone has none that applies them. Take '
        '`backbone.adapted(spec)`.'
      )
    few = span.stop - span.start <= config.unroll
    local = None
    if differ:
      local = jnp.asarray(config.local[span.start : span.stop])
    x, _ = jax.lax.scan(apply, x, (span.params, local), unroll=few or 1)
  return x
