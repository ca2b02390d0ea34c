"""Trees of arrays: the algebra of role trees and stacked blocks.

A role tree is a dict whose keys that end in `blocks` hold trees stacked over
the L transformer blocks (see `types.py`). `narrow` takes their active rows,
`widen` puts rows back; both leave the other keys alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core.types import ActiveSet, Mask, Tree


def is_stacked(key: str) -> bool:
  """Whether a top-level key of a role tree is stacked over blocks."""
  return key.endswith('blocks')


def indices(active: ActiveSet) -> np.ndarray:
  """Numbers of the active blocks, int [d]."""
  return np.flatnonzero(np.asarray(active, dtype=bool))


def trained(mask: Mask, key: str) -> ActiveSet | bool:
  """What trains below a top-level key: its blocks, or all (True) or nothing
  (False) of it."""
  if isinstance(mask, Mapping):
    held = mask.get(key, True)
  else:
    held = mask if is_stacked(key) else True
  return True if isinstance(held, tuple) and all(held) else held


def narrow(tree: Tree, mask: Mask) -> Tree:
  """The trainable part: active rows `[d, ...]` of stacked leaves, the rest;
  keys of which nothing trains are left out."""
  out = {}
  for key, value in tree.items():
    held = trained(mask, key)
    if isinstance(held, tuple):
      value = rows(value, indices(held))
    if held is not False:
      out[key] = value
  return out


def widen(tree: Tree, part: Tree, mask: Mask) -> Tree:
  """`tree` with its trainable part replaced by `part`; inverts `narrow`."""
  out = dict(tree)
  for key, value in part.items():
    held = trained(mask, key)
    if isinstance(held, tuple):
      at = indices(held)
      value = jax.tree.map(
        lambda x, y, at=at: x.at[at].set(y), tree[key], value
      )
    out[key] = value
  return out


def flat(tree: Tree) -> dict[str, Any]:
  """The leaves of nested dicts by path, such as `attn/q/kernel`."""
  return dict(traverse.flatten_dict(tree, sep='/'))


def nested(leaves: Mapping[str, Any]) -> Tree:
  """The nested dicts of leaves by path; inverts `flat`."""
  return traverse.unflatten_dict(dict(leaves), sep='/')


def path_name(path: Sequence) -> str:
  """A key path as text: `attn/q/kernel`."""
  return '/'.join(
    str(getattr(k, 'key', getattr(k, 'idx', getattr(k, 'name', k))))
    for k in path
  )


def subtract(a: Tree, b: Tree) -> Tree:
  return jax.tree.map(jnp.subtract, a, b)


def add(a: Tree, b: Tree) -> Tree:
  return jax.tree.map(jnp.add, a, b)


def scale(tree: Tree, factor) -> Tree:
  return jax.tree.map(lambda x: x * factor, tree)


def equal(a: Tree, b: Tree):
  """Whether all leaves have the same values, bool scalar."""
  leaves = jax.tree.leaves(jax.tree.map(jnp.array_equal, a, b))
  return functools.reduce(jnp.logical_and, leaves, jnp.bool_(True))


def where(condition, a: Tree, b: Tree) -> Tree:
  """`a` if the scalar condition holds, else `b`."""
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def in_turn(function: Callable[[Any], Tree], parts: dict[str, Any]) -> dict:
  """`function` of each part by name, the next one when the last one is there.

  For decompositions of several matrices: on XLA:CPU (0.10, two cores) those
  that run at once may wait for each other's threads, and never end. The values
  are those that they would be apart, bitwise.
  """
  found: dict[str, Tree] = {}
  last = jnp.float32(0.0)
  for name, part in parts.items():
    # Never so, which no compiler knows: that is what makes it wait.
    wait = last > jnp.inf
    found[name] = function(
      jax.tree.map(lambda x, w=wait: jnp.where(w, jnp.zeros_like(x), x), part)
    )
    ends = [x.ravel()[0] for x in jax.tree.leaves(found[name])]
    last = sum(ends, start=jnp.float32(0.0))
  return found


def squared_norm(tree: Tree):
  """Sum of squares of all leaves, float32 scalar."""
  return sum(
    (jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)),
    start=jnp.float32(0.0),
  )


def all_finite(tree: Tree):
  """Whether no leaf has a NaN or an infinity, bool scalar."""
  flags = [
    jnp.max(jnp.abs(x), initial=0) < jnp.inf
    for x in jax.tree.leaves(tree)
    if jnp.issubdtype(x.dtype, jnp.inexact)
  ]
  if not flags:
    return jnp.bool_(True)
  # The last of running minima: the minimum alone XLA:CPU makes a chain, and
  # compiles all of it again for every leaf that is chosen by it.
  found = jnp.stack(flags).astype(jnp.float32)
  return jax.lax.cummin(found)[-1] > 0


def shapes(tree: Tree, count: int | None = None) -> Tree:
  """Shapes and types of a tree's leaves; of `count` such trees [count, ...]."""
  lead = () if count is None else (count,)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), tree
  )


def size(tree: Tree) -> int:
  """Number of elements; works on shapes, too."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
  """Bytes of all leaves; works on shapes, too."""
  return sum(
    int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )


def nbytes_of(roles: Tree, mask: Mask) -> int:
  """Bytes of the trainable part of a role tree; works on shapes, too."""

  def share(key):
    held = trained(mask, key)
    return sum(held) / len(held) if isinstance(held, tuple) else held

  return sum(round(nbytes(value) * share(k)) for k, value in roles.items())


def rows(stacked: Tree, numbers) -> Tree:
  """Rows [n, ...] of a tree stacked on its leading axis."""
  return jax.tree.map(lambda x: x[numbers], stacked)
