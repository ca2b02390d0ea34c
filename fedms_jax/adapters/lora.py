"""Low-rank adapters (LoRA, arXiv 2106.09685) as stacked trees.

For each target kernel [L, d_in, d_out] of the blocks, `a` is [L, d_in, R] and
`b` is [L, R, d_out]; the block computes x W + (alpha / R) x A B, see `Spec`.
"""

from __future__ import annotations

import dataclasses
import difflib

import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.types import Tree


def kernels(blocks: Tree) -> dict[str, tuple[int, ...]]:
  """Shapes [L, d_in, d_out] of the kernels in stacked blocks by `attn/q`."""
  flat = tree.flat(blocks)
  suffix = '/kernel'
  return {
    name.removesuffix(suffix): x.shape
    for name, x in flat.items()
    if name.endswith(suffix)
  }


@dataclasses.dataclass(frozen=True)
class Spec:
  """Which LoRA a run has: its R, its alpha, and the kernels that carry it.

  An `Adapter` of the block. Beside `a` and `b`, or alone, a layer may have a
  dense `delta` [d_in, d_out], which is added unscaled.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]

  @property
  def scale(self) -> float:
    """What A B is multiplied by."""
    return self.alpha / self.rank

  @property
  def where(self) -> tuple[str, ...]:
    """See `Adapter`."""
    return self.targets

  def init(self, key, blocks: Tree) -> Tree:
    """A uniform within 1 / sqrt(d_in), B zero; see `Adapter`."""
    self.check(blocks)
    found = kernels(blocks)
    flat = {}
    for number, target in enumerate(self.targets):
      layers, rows, columns = found[target]
      bound = rows**-0.5
      flat[f'{target}/a'] = jax.random.uniform(
        jax.random.fold_in(key, number),
        (layers, rows, self.rank),
        jnp.float32,
        -bound,
        bound,
      )
      flat[f'{target}/b'] = jnp.zeros((layers, self.rank, columns))
    return tree.nested(flat)

  def apply(self, params: Tree, x, y):
    """y + scale * x A B + x delta, of what there is; see `Adapter`."""
    if 'a' in params:
      a, b = params['a'].astype(y.dtype), params['b'].astype(y.dtype)
      y = y + (x @ a) @ (b * self.scale)
    if 'delta' in params:
      y = y + x @ params['delta'].astype(y.dtype)
    return y

  def check(self, blocks: Tree) -> None:
    """Raises `ValueError` where this is no LoRA of these blocks."""
    if not self.alpha > 0:
      raise ValueError(
        f'`Spec.alpha`={self.alpha} is not allowed; allowed: more than 0.'
      )
    found, rank = kernels(blocks), self.rank
    if not self.targets:
      raise ValueError(
        f'`Spec.targets` is empty; allowed: one or more of {", ".join(found)}.'
      )
    for i, target in enumerate(self.targets):
      if target not in found:
        close = difflib.get_close_matches(target, found, n=1, cutoff=0.0)
        raise ValueError(
          f'`Spec.targets`[{i}]={target!r} matches no kernel. Kernels: '
          f'{", ".join(found)}. Did you mean {close[0]!r}?'
        )
      _, rows, columns = found[target]
      if not 1 <= rank <= min(rows, columns):
        raise ValueError(
          f'`Spec.rank`={rank} does not fit {target} ({rows} x {columns}); '
          f'allowed: 1 to {min(rows, columns)}. Lower `Spec.rank`.'
        )


def pairs(lora: Tree) -> dict[str, tuple[jax.Array, jax.Array]]:
  """(A [..., d_in, R], B [..., R, d_out]) by target."""
  flat = tree.flat(lora)
  return {
    name.removesuffix('/a'): (flat[name], flat[f'{name[:-1]}b'])
    for name in flat
    if name.endswith('/a')
  }


def from_pairs(found: dict[str, tuple[jax.Array, jax.Array]]) -> Tree:
  """The tree of (A, B) by target; inverts `pairs`."""
  flat = {}
  for target, (a, b) in found.items():
    flat |= {f'{target}/a': a, f'{target}/b': b}
  return tree.nested(flat)


def products(lora: Tree) -> dict[str, jax.Array]:
  """The updates A B [..., d_in, d_out] by target, without their scale."""
  return {target: a @ b for target, (a, b) in pairs(lora).items()}


def leaves(lora: Tree, name: str) -> Tree:
  """What all targets have under one name: their A (`a`), or their B (`b`)."""
  flat = tree.flat(lora)
  return tree.nested({k: v for k, v in flat.items() if k.endswith(f'/{name}')})


def joined(*parts: Tree) -> Tree:
  """Leaves of the same targets in one tree; inverts `leaves`."""
  flat = {}
  for part in parts:
    flat |= tree.flat(part)
  return tree.nested(flat)


def dense(updates: dict[str, jax.Array]) -> Tree:
  """Dense updates [L, d_in, d_out] by target as a tree that joins LoRA: the
  block adds x delta, unscaled."""
  return tree.nested({f'{target}/delta': x for target, x in updates.items()})


def merge(blocks: Tree, lora: Tree, scale: float) -> Tree:
  """Blocks with the scaled updates, and what is dense, added to their kernels.

  For export and as a test oracle only: in training, under `vmap`, it would
  make one copy of the kernels per client.

  Raises:
    ValueError: the kernels are int8, in which an update would vanish.
  """
  flat = tree.flat(blocks)
  added = tree.flat(lora)
  for name, update in products(lora).items():
    kernel = flat[f'{name}/kernel']
    if jnp.issubdtype(kernel.dtype, jnp.integer):
      raise ValueError(
        f'{name}/kernel is {kernel.dtype}: no update can be added to it. Load '
        'the model with `Options.storage`=float32 to merge.'
      )
    update = scale * update + added.get(f'{name}/delta', 0.0)
    flat[f'{name}/kernel'] = (kernel + update).astype(kernel.dtype)
  return tree.nested(flat)
