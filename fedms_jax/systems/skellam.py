"""What sums of whole numbers with Skellam noise tell, by Renyi divergences
(Agarwal et al., The Skellam mechanism, arXiv 2110.04995, theorem 3.5)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

# For which the theorem holds: whole ones.
ORDERS = tuple([*range(2, 129), 256, 512, 1024])


def divergences(
  two: float, one: float, variance: float, orders: Sequence[int] = ORDERS
) -> np.ndarray:
  """The Renyi divergence of each order, of one sum.

  two, one: the most that one client moves the sum of whole numbers, by the L2
  and the L1 norm. variance: of the noise of a number.
  """
  a = np.asarray(orders, float)
  rest = np.minimum(
    ((2 * a - 1) * two**2 + 6 * one) / (4 * variance**2),
    3 * one / (2 * variance),
  )
  return a * two**2 / (2 * variance) + rest


def epsilon(events: Sequence[tuple[Any, int]], delta: float) -> float:
  """The epsilon of events, each so many times. An event has 'noise', z, and
  'levels', the largest L2 norm of a message in whole numbers, whose L1 norm is
  at most its square."""
  from dp_accounting import rdp  # lazy: an extra

  total = np.zeros(len(ORDERS))
  for what, count in events:
    if what['kind'] != 'skellam':
      raise ValueError(
        f'events of {what["kind"]!r} and of discrete noise are not added up.'
      )
    norm = float(what['levels'])
    total += count * divergences(norm, norm**2, (what['noise'] * norm) ** 2)
  log = logging.getLogger('absl')
  before = log.level
  log.setLevel(logging.ERROR)  # of the largest order, which is only a bound
  try:
    found, _ = rdp.compute_epsilon(list(ORDERS), list(total), delta)
  finally:
    log.setLevel(before)
  return float(found) if math.isfinite(found) else math.inf
