"""Bottleneck adapters (arXiv 1902.00751) as stacked trees.

Behind a layer of a block, whose output is y [..., D], there is

  y + relu(y W_d + b_d) W_u + b_u

with `down` W_d [L, D, R], `down_bias` [L, R], `up` W_u [L, R, D] and `up_bias`
[L, D].
"""

from __future__ import annotations

import dataclasses
import difflib

import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora
from fedms_jax.core import tree
from fedms_jax.core.types import Tree


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """Which bottlenecks a run has, an `Adapter` of the block.

  reduction: R is D / reduction, at least 1. targets: layers that have one
  behind them, such as `mlp/down`.
  """

  reduction: int
  targets: tuple[str, ...]

  @property
  def where(self) -> tuple[str, ...]:
    """See `Adapter`."""
    return self.targets

  def init(self, key, blocks: Tree) -> Tree:
    """W_d uniform within 1 / sqrt(D), the rest zero; see `Adapter`."""
    self.check(blocks)
    found, flat = lora.kernels(blocks), {}
    for number, target in enumerate(self.targets):
      layers, _, width = found[target]
      rank, bound = max(1, width // self.reduction), width**-0.5
      flat[f'{target}/down'] = jax.random.uniform(
        jax.random.fold_in(key, number),
        (layers, width, rank),
        jnp.float32,
        -bound,
        bound,
      )
      flat[f'{target}/down_bias'] = jnp.zeros((layers, rank))
      flat[f'{target}/up'] = jnp.zeros((layers, rank, width))
      flat[f'{target}/up_bias'] = jnp.zeros((layers, width))
    return tree.nested(flat)

  def apply(self, params: Tree, x, y):
    """What comes out of a layer and its bottleneck; see `Adapter`."""
    del x
    p = {name: value.astype(y.dtype) for name, value in params.items()}

    def row(bias):
      return jnp.expand_dims(bias, tuple(range(y.ndim - 1)))

    inner = jax.nn.relu(y @ p['down'] + row(p['down_bias']))
    return y + inner @ p['up'] + row(p['up_bias'])

  def check(self, blocks: Tree) -> None:
    """Raises `ValueError` where the blocks have no such layers."""
    found = lora.kernels(blocks)
    if not self.targets:
      raise ValueError(
        '`Bottleneck.targets` is empty; allowed: one or more of '
        f'{", ".join(found)}.'
      )
    for i, target in enumerate(self.targets):
      if target not in found:
        close = difflib.get_close_matches(target, found, n=1, cutoff=0.0)
        raise ValueError(
          f'`Bottleneck.targets`[{i}]={target!r} matches no layer. Layers: '
          f'{", ".join(found)}. Did you mean {close[0]!r}?'
        )


def mixed(weight: float, one: Tree, other: Tree) -> Tree:
  """The bottlenecks, of both widths together, that add `weight` times what
  `one` adds and 1 - `weight` times what `other` does; exact, since units of a
  bottleneck do not see each other."""

  def beside(path, x, y):
    name = path[-1].key
    if name in ('down', 'down_bias'):
      return jnp.concatenate([x, y], axis=-1)
    if name == 'up':
      return jnp.concatenate([weight * x, (1 - weight) * y], axis=-2)
    return weight * x + (1 - weight) * y

  return jax.tree_util.tree_map_with_path(beside, one, other)
