"""The gate of FedMS and the mixing of experts (arXiv 2312.15926).

The paper names a gate network with an inserted adapter. Its form here is our
reconstruction: a residual bottleneck adapter on the frozen pooled feature of
the base model, then a linear layer to the experts. The linear layer starts at
zero, so that both experts weigh the same (or `bias` says otherwise). What else
a gate may read, and a log-odds of its own, are ours, too.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Tree

GLOBAL, LOCAL = 0, 1  # places on the expert axis E
# How many numbers the gate reads of an input beside the feature.
MEASURES = {'confidence': 5, 'likeness': 2}


class GateSpec(NamedTuple):
  """kind: softmax, sigmoid, per_class, or fixed (weights by the bias alone:
  no parameters). bias: starting log-odds of the global expert. mix: logits,
  probabilities, features or top1. level: of features per token [B, T, D],
  what one weighing is for: a 'token', a 'sequence' (their mean), or, for next
  tokens, the sequence as read so far ('running' mean), because a gate that
  has read on would give the answer away. inputs: what the gate reads: the
  'feature', and of `MEASURES`; (): nothing. odds: a log-odds of its own is
  added, with a learning rate of its own."""

  width: int
  classes: int
  kind: str = 'softmax'
  reduction: int = 4
  bias: float = 0.0
  mix: str = 'logits'
  level: str = 'token'
  inputs: tuple[str, ...] = ('feature',)
  odds: bool = False


def outputs(spec: GateSpec) -> int:
  """Number of gate outputs before they become weights."""
  return {'softmax': 2, 'sigmoid': 1, 'per_class': 2 * spec.classes}[spec.kind]


def init(key, spec: GateSpec) -> Tree:
  """The adapter (D -> D / reduction -> D) and the linear layer; nothing of a
  fixed gate."""
  if spec.kind == 'fixed':
    return {}
  measures = sum(MEASURES.get(name, 0) for name in spec.inputs)
  out = {'measures': jnp.zeros(measures)} if measures else {}
  if 'feature' not in spec.inputs:
    return out
  d, h, n = spec.width, max(1, spec.width // spec.reduction), outputs(spec)
  down, up = jax.random.split(key)
  bias = _added(spec, jnp.zeros(n), jnp.full(1, spec.bias))
  return out | {
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


def _added(spec: GateSpec, y, odds):
  """Outputs [..., n] of the gate, with log-odds [..., 1] of the global expert
  that are added."""
  if spec.kind == 'sigmoid':
    return y + odds
  half = y.shape[-1] // 2
  sign = jnp.where(jnp.arange(2 * half) < half, 0.5, -0.5)
  return y + odds * lead(sign, y)


def confidence(experts):
  """What experts' logits [B, E, C] say of themselves, [B, 5]: the entropy of
  each in nats, how far its two best classes are apart in probability, and
  whether their best classes are one."""
  logp = jax.nn.log_softmax(experts.astype(jnp.float32))
  p = jnp.exp(logp)
  entropies = -jnp.sum(p * logp, axis=-1)
  best = jax.lax.top_k(p, 2)[0]
  top = jnp.argmax(p, axis=-1)
  agree = (top[:, GLOBAL] == top[:, LOCAL])[:, None].astype(p.dtype)
  margins = best[..., 0] - best[..., 1]
  return jnp.concatenate([entropies, margins, agree], axis=-1)


def likeness(features, own, everyone):
  """How like inputs are to a client's own and to everyone's, [B, 2]: the cosine
  between features and the client's mean, seen from everyone's mean; and that
  between features and everyone's mean. 0 where there is no such mean yet.

  features: of norm 1 [B, D]. own, everyone: means of such features [D].
  """

  def cosine(x, y):
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y)
    return x @ y / jnp.maximum(norms, 1e-6)

  known = jnp.any(own != 0) & jnp.any(everyone != 0)
  away = jnp.where(known, own - everyone, 0.0)
  return jnp.stack(
    [cosine(features - everyone[None], away), cosine(features, everyone)], -1
  )


def weights(
  spec: GateSpec, params: Tree, features, mask=None, *, measures=None, odds=None
):
  """Expert weights [B, E, 1], or [B, E, C] per class, that sum to 1 over E.

  features: of the frozen base, pooled [B, D], or per token [B, T, D] with
  their mask (bool [B, T], None: all). Then the weights are [B, T, E, 1],
  unless one weighing is for the sequence. measures: of `MEASURES`, [B, m],
  where the gate reads them. odds: the log-odds [1] of a gate that has them.
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
  y = _read(spec, params, x)
  if measures is not None:
    y = _added(spec, y, (measures @ params['measures'])[:, None])
  if odds is not None:
    y = _added(spec, y, lead(odds, y))
  if spec.kind == 'sigmoid':
    first = jax.nn.sigmoid(y)
    return jnp.stack([first, 1.0 - first], axis=-2)
  y = y.reshape(*y.shape[:-1], 2, -1)
  return jax.nn.softmax(y, axis=-2)


def _read(spec: GateSpec, params: Tree, x):
  """Outputs [..., n] of the gate by features [..., D]; those of a gate that
  does not read them are its bias."""
  if 'adapter' not in params:
    none = jnp.zeros((*x.shape[:-1], outputs(spec)))
    return _added(spec, none, jnp.full((1,) * none.ndim, spec.bias))
  adapter, linear = params['adapter'], params['linear']
  hidden = x @ adapter['down']
  hidden = jax.nn.gelu(hidden + lead(adapter['down_bias'], hidden))
  x = x + hidden @ adapter['up'] + lead(adapter['up_bias'], x)
  return x @ linear['kernel'] + lead(linear['bias'], x)


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
