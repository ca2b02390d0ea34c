"""Counts of what goes into layers, beside their LoRA.

The units of an MLP are what goes into its last layer. A tap there changes no
output; the gradient of anything behind it with respect to the tap is how often
each unit was at rest. So one pass counts all blocks, whatever their loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora
from fedms_jax.core.types import Span, Tree

LAYER = 'mlp/down'


class Tapped(NamedTuple):
  """LoRA on layers other than `LAYER`, and a tap there; an `Adapter`."""

  spec: lora.Spec

  @property
  def where(self) -> tuple[str, ...]:
    """See `Adapter`."""
    return (*self.spec.targets, LAYER)

  def init(self, key, blocks: Tree) -> Tree:
    """LoRA alone; `tapped` adds what counts."""
    return self.spec.init(key, blocks)

  def apply(self, params: Tree, x, y):
    """See `Adapter`; of a tap y as it is."""
    if 'rest' in params:
      return _tap(params['rest'], params['held'], x, y)
    return self.spec.apply(params, x, y)


@jax.custom_vjp
def _tap(rest, held, x, y):
  """y; the gradient of `rest` [F] counts x [B, T, F] <= 0, by held [B, T]."""
  del rest, held, x
  return y


def _forward(rest, held, x, y):
  del rest
  return y, (held, x)


def _backward(kept, slope):
  held, x = kept
  counts = jnp.einsum('bt,btf->f', held, (x <= 0).astype(jnp.float32))
  return counts, jnp.zeros_like(held), jnp.zeros_like(x), slope


_tap.defvjp(_forward, _backward)


def tapped(spans: Sequence[Span], rest, held) -> tuple[Span, ...]:
  """Spans of (weights, LoRA) with taps.

  rest: zeros [L, F], whose gradient counts. held: float32 [B, T], what a token
  counts.
  """
  found = []
  for span in spans:
    weights, adapter = span.params
    count = span.stop - span.start
    taps = {
      'rest': rest[span.start : span.stop],
      'held': jnp.broadcast_to(held, (count, *held.shape)),
    }
    inner = (adapter or {}).get('mlp', {})
    adapter = (adapter or {}) | {'mlp': inner | {'down': taps}}
    found.append(Span(span.start, span.stop, (weights, adapter)))
  return tuple(found)
