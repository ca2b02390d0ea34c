"""Which blocks train in a step (SAL, sparsely activated LoRA, 2312.15926).

An active set, a tuple of bools, is static for the compiled round: a traced mask
would save no work. `spans` cuts stacked parameters where it changes, so that
the backward pass ends at the lowest active block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax

from fedms_jax.core.types import ActiveSet, Span, Tree


def depth(active: ActiveSet) -> int:
  """Number of active blocks."""
  return sum(active)


def boundary(ever: ActiveSet) -> int:
  """The lowest block that has ever been active; L if none has.

  Values above it may have changed since the stage began; what lies below is
  the frozen prefix.
  """
  return ever.index(True) if any(ever) else len(ever)


class Stack(NamedTuple):
  """Stacked parameters in training: `full` [L, ...] with frozen values, and
  `part` [d, ...] with those of the active rows."""

  full: Tree
  part: Tree
  active: ActiveSet


def at_rest(full: Tree, blocks: int) -> Stack:
  """A stack of which nothing trains."""
  return Stack(full, None, (False,) * blocks)


def spans(stacks: Sequence[Stack], boundary: int) -> tuple[Span, ...]:
  """The blocks [boundary, L) as runs that belong together.

  A block comes from the first stack in which it is active, else from the
  frozen values of the last one.
  """
  blocks = len(stacks[0].active)
  owner = [
    next((i for i, s in enumerate(stacks) if s.active[block]), None)
    for block in range(blocks)
  ]
  cuts = [
    b
    for b in range(boundary, blocks)
    if b == boundary or owner[b] != owner[b - 1]
  ]
  if not cuts:
    return ()
  out = []
  for start, stop in zip(cuts, [*cuts[1:], blocks], strict=True):
    number = owner[start]
    if number is None:
      params = cut(stacks[-1].full, start, stop)
    else:
      stack = stacks[number]
      first = depth(stack.active[:start])
      params = cut(stack.part, first, first + stop - start)
    out.append(Span(start, stop, params))
  return tuple(out)


def cut(stacked: Tree, start: int, stop: int) -> Tree:
  """Blocks [start, stop) of a stacked tree."""
  return jax.tree.map(lambda x: x[start:stop], stacked)


def over(weights: Tree, lora: Sequence[Span]) -> tuple[Span, ...]:
  """Spans of (frozen weights, LoRA), as `Backbone.run` takes them."""
  return tuple(
    Span(s.start, s.stop, (cut(weights, s.start, s.stop), s.params))
    for s in lora
  )


def prefix(
  weights: Tree, lora: Tree | None, stop: int, start: int = 0
) -> tuple[Span, ...]:
  """The blocks [start, stop) as one span; none if it is empty."""
  if start == stop:
    return ()
  lora = None if lora is None else cut(lora, start, stop)
  return (Span(start, stop, (cut(weights, start, stop), lora)),)
