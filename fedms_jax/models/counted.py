"""What a function costs, counted in its own operations.

Matrix products and convolutions alone are counted, which is what analytic costs
of transformers count, too. The rule is ours; it needs no compiler, so that it
is the same on all devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def cost(function: Callable, *args) -> tuple[float, float]:
  """(FLOPs, bytes) of a call with arrays or shapes.

  FLOPs of matrix products and convolutions, a multiply-add being 2, and twice
  the bytes of what they give, as a backward pass keeps it: before and after a
  nonlinearity. A `cond` counts as its dearest branch, a `while` as one turn.
  """
  return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr) -> tuple[float, float]:
  flops, kept = 0.0, 0.0
  for eqn in jaxpr.eqns:
    found = [_of(inner) for inner in _inner(eqn)]
    if eqn.primitive.name == 'cond':
      found = [max(found)]
    times = eqn.params.get('length', 1) if eqn.primitive.name == 'scan' else 1
    flops += times * sum(f for f, _ in found)
    kept += times * sum(k for _, k in found)
    one = _flops(eqn)
    if one:
      flops += one
      kept += 2.0 * sum(_nbytes(v.aval) for v in eqn.outvars)
  return flops, kept


def _inner(eqn) -> Iterator[Any]:
  """The programs within an operation."""
  for value in eqn.params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      one = getattr(one, 'jaxpr', one)
      if hasattr(one, 'eqns'):
        yield one


def _flops(eqn) -> float:
  """Of one operation."""
  size = float(sum(np.prod(v.aval.shape) for v in eqn.outvars))
  if eqn.primitive.name == 'dot_general':
    (contracted, _), _ = eqn.params['dimension_numbers']
    shape = eqn.invars[0].aval.shape
    return 2.0 * size * float(np.prod([shape[axis] for axis in contracted]))
  if eqn.primitive.name == 'conv_general_dilated':
    shape = eqn.invars[1].aval.shape
    out = shape[eqn.params['dimension_numbers'].rhs_spec[0]]
    return 2.0 * size * float(np.prod(shape)) / out
  return 0.0


def _nbytes(aval) -> float:
  return float(np.prod(aval.shape)) * aval.dtype.itemsize
