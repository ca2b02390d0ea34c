"""The two programs by which derived columns are filled, block by block."""

from __future__ import annotations

import jax

from fedms_jax.core import compile
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Plan, Roles


@compile.jit(static=(0, 3))
def derive(algorithm: Algorithm, roles: Roles, raw, plan: Plan):
  """The derived columns of one block of raw rows."""
  return algorithm.columns(roles, raw, plan)


@compile.jit(donate=(0,), light=True)
def write(derived, new, start):
  """The derived columns with a block's at row `start`."""
  return {
    name: jax.lax.dynamic_update_slice_in_dim(
      derived[name], new[name].astype(derived[name].dtype), start, axis=0
    )
    for name in derived
  }
