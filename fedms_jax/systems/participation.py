"""How evenly clients take part, and who is left behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def gini(counts: np.ndarray) -> float:
  """The Gini coefficient of how often clients have reported, [N]: 0 where all
  did equally often, near 1 where one did it all; 0 where nobody did."""
  counts = np.sort(np.asarray(counts, float))
  n, total = len(counts), counts.sum()
  if not total:
    return 0.0
  ranks = 2 * np.arange(1, n + 1) - n - 1
  return float((ranks * counts).sum() / (n * total))


def top_share(counts: np.ndarray, part: float = 0.3) -> float:
  """The share of all reports that come of the `part` of clients that reported
  the most often."""
  counts = np.sort(np.asarray(counts, float))[::-1]
  most = max(1, round(part * len(counts)))
  return float(counts[:most].sum() / max(counts.sum(), 1.0))


def deciles(
  seconds: np.ndarray, scores: Sequence[float | None]
) -> dict[str, float | None]:
  """The mean scores of the fastest and of the slowest tenth of clients, at
  least one each. seconds: that each takes, [n]. scores: None: it has none."""
  values = np.array([np.nan if s is None else s for s in scores], float)
  order = np.argsort(seconds, kind='stable')
  order = order[np.isfinite(values[order])]
  if not len(order):
    return {'fast': None, 'slow': None}
  tenth = max(1, round(len(order) / 10))
  return {
    'fast': float(values[order[:tenth]].mean()),
    'slow': float(values[order[-tenth:]].mean()),
  }
