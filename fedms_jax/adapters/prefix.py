"""Prefixes of keys and values as stacked trees: prefix tuning (arXiv
2101.00190), in all blocks P-tuning v2 (arXiv 2110.07602).

In each block the tokens see P trained keys before their own, with P trained
values: `k` and `v`, [L, P, width of the keys]. They turn by no rotary angle;
the tokens stand behind them, at places from P on.

A prefix of zeros would still draw attention from the tokens, so a block may be
without: it is off where all of its values are zero, as they are at first, so
that the start is the base model. In a block that trains it is on from the first
step (`turned_on`). That is ours, as are first keys of 0.02 N(0, 1).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora
from fedms_jax.core import tree
from fedms_jax.core.activation import Stack
from fedms_jax.core.types import Tree

PLACE = 'attn/prefix'
ON = 'on'  # beside k and v of blocks that train


@dataclasses.dataclass(frozen=True)
class Prefix:
  """Prefixes of P = `length` keys and values, an `Adapter` of the block."""

  length: int

  @property
  def where(self) -> tuple[str, ...]:
    """See `Adapter`; it is a place in the attention, and no layer."""
    return (PLACE,)

  def init(self, key, blocks: Tree) -> Tree:
    """Keys 0.02 N(0, 1), values zero: off; see `Adapter`."""
    layers, width = _keys(blocks)
    shape = layers, self.length, width
    fresh = {'k': 0.02 * jax.random.normal(key, shape), 'v': jnp.zeros(shape)}
    return tree.nested({f'{PLACE}/{name}': x for name, x in fresh.items()})

  def apply(self, params: Tree, x, y):
    """Keys and values of one block with its prefix.

    Args:
      params: k and v [P, G Dh], and `on`, a scalar, where it is known.
      x: unused.
      y: (keys, values), [B, T, G, Dh] each.

    Returns:
      (keys, values, seen): [B, P + T, G, Dh] twice, and whether tokens see the
      keys of the prefix, bool [P].
    """
    del x
    values = params['v']
    on = params[ON] > 0 if ON in params else jnp.any(values != 0)

    def before(own, found):
      shape = (len(found), len(own), *found.shape[2:])
      own = own.astype(found.dtype).reshape(1, *shape[1:])
      return jnp.concatenate([jnp.broadcast_to(own, shape), found], axis=1)

    keys, found = before(params['k'], y[0]), before(values, y[1])
    return keys, found, jnp.broadcast_to(on, (len(values),))


def turned_on(stack: Stack) -> Stack:
  """The stack of prefixes with those on that train."""
  if stack.part is None:
    return stack
  rows = sum(stack.active)
  flag = tree.nested({f'{PLACE}/{ON}': jnp.ones(rows)})
  return stack._replace(part=lora.joined(stack.part, flag))


def _keys(blocks: Tree) -> tuple[int, int]:
  """(L, width of the keys of all heads of a block)."""
  found = lora.kernels(blocks)
  if 'attn/k' not in found:
    raise ValueError(
      f'`Prefix` needs the kernel attn/k; got {", ".join(found)}.'
    )
  layers, _, width = found['attn/k']
  return layers, width
