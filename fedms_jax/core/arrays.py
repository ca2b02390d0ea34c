"""Arrays that are made by one program for a whole tree: what is asked for leaf
by leaf is compiled shape by shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.core import compile
from fedms_jax.core.types import Tree


def zeros(shapes: Tree) -> Tree:
  """Zeros of the shapes and types of a tree's leaves."""
  leaves, structure = jax.tree.flatten(shapes)
  wanted = tuple((x.shape, jnp.dtype(x.dtype)) for x in leaves)
  return jax.tree.unflatten(structure, _zeros(wanted))


@compile.jit(static=(0,), light=True)
def _zeros(shapes):
  return [jnp.zeros(*shape) for shape in shapes]


@compile.jit(static=(1,), light=True)
def repeated(values: Tree, count: int) -> Tree:
  """Each leaf `count` times, [count, ...]."""
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), values)
