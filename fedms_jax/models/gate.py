"""The gate of FedMS and the mixing of experts (arXiv 2312.15926).

The paper names a gate network with an inserted adapter. Its form here is our
reconstruction: a residual bottleneck adapter on the frozen pooled feature of
the base model, then a linear layer to the experts. The linear layer starts at
zero, so that both experts weigh the same (or `bias` says otherwise).
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Tree

GLOBAL, LOCAL = 0, 1  # places on the expert axis E


class GateSpec(NamedTuple):
  """kind: softmax, sigmoid, per_class, or fixed (weights by the bias alone:
  no parameters). bias: starting log-odds of the global expert. mix: logits,
  probabilities, features or top1. level: of features per token [B, T, D],
  what one weighing is for: a 'token', a 'sequence' (their mean), or, for next
  tokens, the sequence as read so far ('running' mean), because a gate that
  has read on would give the answer away."""

  width: int
  classes: int
  kind: str = 'softmax'
  reduction: int = 4
  bias: float = 0.0
  mix: str = 'logits'
  level: str = 'token'


def outputs(spec: GateSpec) -> int:
  """Number of gate outputs before they become weights."""
  return {'softmax': 2, 'sigmoid': 1, 'per_class': 2 * spec.classes}[spec.kind]


def init(key, spec: GateSpec) -> Tree:
  """The adapter (D -> D / reduction -> D) and the linear layer; nothing of a
  fixed gate."""
  if spec.kind == 'fixed':
    return {}
  d, h, n = spec.width, max(1, spec.width // spec.reduction), outputs(spec)
  down, up = jax.random.split(key)
  bias = jnp.zeros(n)
  if spec.bias:
    share = spec.bias if spec.kind == 'sigmoid' else spec.bias / 2
    bias = bias + share
    if n > 1:
      bias = bias.at[n // 2 :].set(-share)
  return {
    'adapter': {
      'down': jax.random.normal(down, (d, h)) * d**-0.5,
      'down_bias': jnp.zeros(h),
      'up': jax.random.normal(up, (h, d)) * h**-0.5,
      'up_bias': jnp.zeros(d),
    },
    'linear': {'kernel': jnp.zeros((d, n)), 'bias': bias},
  }


def _levelled(spec: GateSpec, x, mask):
  """Features [B, T, D] as the gate sees them: [B, T, D], or [B, D]."""
  if spec.level == 'token':
    return x
  held = jnp.ones(x.shape[:2], bool) if mask is None else mask
  held = held[..., None].astype(x.dtype)
  add = jnp.sum if spec.level == 'sequence' else jnp.cumsum
  return add(x * held, axis=1) / jnp.maximum(add(held, axis=1), 1.0)


def weights(spec: GateSpec, params: Tree, features, mask=None):
  """Expert weights [B, E, 1], or [B, E, C] per class, that sum to 1 over E.

  features: of the frozen base, pooled [B, D], or per token [B, T, D] with
  their mask (bool [B, T], None: all). Then the weights are [B, T, E, 1],
  unless one weighing is for the sequence.
  """
  chex.assert_rank(features, {2, 3})
  chex.assert_axis_dimension(features, -1, spec.width)
  x = features.astype(jnp.float32)
  if x.ndim == 3:
    if mask is not None:
      chex.assert_shape(mask, x.shape[:2])
    x = _levelled(spec, x, mask)
  if spec.kind == 'fixed':
    first = jnp.full((*x.shape[:-1], 1), jax.nn.sigmoid(spec.bias))
    return jnp.stack([first, 1.0 - first], axis=-2)
  adapter, linear = params['adapter'], params['linear']
  hidden = x @ adapter['down']
  hidden = jax.nn.gelu(hidden + lead(adapter['down_bias'], hidden))
  x = x + hidden @ adapter['up'] + lead(adapter['up_bias'], x)
  y = x @ linear['kernel'] + lead(linear['bias'], x)
  if spec.kind == 'sigmoid':
    first = jax.nn.sigmoid(y)
    return jnp.stack([first, 1.0 - first], axis=-2)
  y = y.reshape(*y.shape[:-1], 2, -1)
  return jax.nn.softmax(y, axis=-2)


def _hard(w):
  """The weights of the strongest expert alone, with the soft gradient."""
  hard = jax.nn.one_hot(jnp.argmax(w, -2), w.shape[-2], axis=-2)
  return w + jax.lax.stop_gradient(hard - w)


def mix(spec: GateSpec, w, experts):
  """Mixed logits [..., C] of expert outputs [..., E, C] with weights [..., E,
  1 or C]; probabilities are mixed in log space: the result is logits again.
  Weights of a sequence hold for each of its tokens."""
  chex.assert_rank(w, {experts.ndim - 1, experts.ndim})
  chex.assert_axis_dimension(w, -2, experts.shape[-2])
  w = w[:, None] if w.ndim < experts.ndim else w
  chex.assert_is_broadcastable(w.shape, experts.shape)
  if spec.mix == 'top1':
    w = _hard(w)
  if spec.mix == 'probabilities':
    logp = jax.nn.log_softmax(experts, axis=-1)
    return jax.nn.logsumexp(logp, axis=-2, b=w)
  return jnp.sum(w * experts, axis=-2)


def entropy(w):
  """Entropy of expert weights in nats, mean over classes if per class: [B]."""
  h = -jnp.sum(w * jnp.log(jnp.maximum(w, 1e-12)), axis=-2)
  return jnp.mean(h, axis=-1)
