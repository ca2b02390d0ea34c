"""Steps down a loss, in a row: what servers do, and gates that are fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from fedms_jax.core.types import Batch, Tree


def descended(
  loss: Callable[[Tree, Any], Any],
  params: Tree,
  optimizer: optax.GradientTransformation,
  over: Any,
  turn: Callable[[Tree], Tree] = lambda slope: slope,
) -> tuple[Tree, Any]:
  """A step of an optimizer on each of several losses.

  Args:
    loss: (params, what it is of) -> a scalar.
    params: to begin with.
    optimizer: fresh.
    over: what the losses are of, with a leading axis [S]: batches, or numbers.
    turn: what becomes of a gradient before the step.

  Returns:
    (params after S steps, the losses before each of them [S]).
  """

  def body(carry, what):
    params, state = carry
    value, slope = jax.value_and_grad(loss)(params, what)
    moves, state = optimizer.update(turn(slope), state, params)
    return (optax.apply_updates(params, moves), state), value

  (params, _), values = jax.lax.scan(
    body, (params, optimizer.init(params)), over
  )
  return params, values


def batches(rows: Batch, steps: int, size: int) -> Batch:
  """Rows [S * B, ...] as batches [S, B, ...]."""
  return jax.tree.map(lambda x: x.reshape(steps, size, *x.shape[1:]), rows)
