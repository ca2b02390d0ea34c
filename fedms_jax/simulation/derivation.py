"""The two programs by which derived columns are filled, block by block."""

from __future__ import annotations

import itertools

import jax

from fedms_jax.core import compile
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Plan, Roles


@compile.jit(static=(0, 3, 4))
def derive(
  algorithm: Algorithm,
  roles: Roles,
  raw,
  plan: Plan,
  lower: tuple[int, ...] = (),
):
  """The derived columns of one block of raw rows, in one pass through its
  prefix.

  lower: boundaries below the plan's, ascending; see `Algorithm.deeper`.

  Returns:
    (columns, boundary -> those columns that are others at this lower one).
  """
  if not lower:
    return algorithm.columns(roles, raw, plan), {}
  assert algorithm.deeper is not None
  found = algorithm.columns(roles, raw, plan._replace(boundary=lower[0]))
  others = {}
  for low, high in itertools.pairwise((*lower, plan.boundary)):
    new = algorithm.deeper(roles, raw | found, low, high)
    others[low] = {name: found[name] for name in new}
    found = new
  # What does not differ is made of what enters the highest of them, and of
  # nothing below: nobody reads what else there was of the lowest.
  return algorithm.columns(roles, raw | found, plan), others


@compile.jit(donate=(0,), light=True)
def write(derived, new, start):
  """The derived columns with a block's at row `start`."""
  return {
    name: jax.lax.dynamic_update_slice_in_dim(
      derived[name], new[name].astype(derived[name].dtype), start, axis=0
    )
    for name in derived
  }
