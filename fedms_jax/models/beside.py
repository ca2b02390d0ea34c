"""Blocks with something beside each of the last ones: an adapter in parallel
to a whole block, where `core.types.Adapter` is one in parallel to a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fedms_jax.core import activation
from fedms_jax.core.types import Span, Tree


class Beside(NamedTuple):
  """What is added to what comes out of the last blocks.

  count: of these blocks. add: (number among them, x [B, T, D] that enters the
  block) -> what is added, [B, T, D].
  """

  count: int
  add: Callable[[int, Any], Any]


def last(blocks: Tree, total: int, beside: Beside, run: Callable, x):
  """x [B, T, D] through the last `beside.count` of `total` blocks.

  blocks: stacked [total, ...]. run: (spans, x) -> x, as `Backbone.run`.
  """
  first = total - beside.count
  for number in range(beside.count):
    at = first + number
    own = activation.cut(blocks, at, at + 1)
    x = run([Span(at, at + 1, (own, None))], x) + beside.add(number, x)
  return x
