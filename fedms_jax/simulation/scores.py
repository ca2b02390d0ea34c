"""What readers' models scored: sums of each, and what metrics make of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core import metrics
from fedms_jax.core.metrics import Metric

_METRIC = 'metric/'


class Scores(NamedTuple):
  """What n readers scored, on the host.

  sums: name -> float32 [n, 2], or [n, G, 2] of groups of rows. values: name of
  a metric and of a model -> each reader's value, float64 [n], NaN where there
  is none; of metrics that are no table. totals: the same keys, and those of
  tables -> sums over readers and rows, float64. kept: the same keys -> sums of
  each reader over rows, float64 [n, ...], of metrics whose sums are kept.
  """

  sums: dict[str, np.ndarray]
  values: dict[tuple[str, str], np.ndarray]
  totals: dict[tuple[str, str], np.ndarray]
  kept: dict[tuple[str, str], np.ndarray]


class Collector:
  """Puts `Scores` together from parts, a few readers at a time.

  Sums of metrics, which may be large, are finished as soon as a reader's are
  all there, and not kept, but for those that are named.
  """

  def __init__(
    self,
    count: int,
    asked: Sequence[Metric],
    groups: int = 0,
    keep: Collection[str] = (),
  ):
    """groups: of rows, that sums are kept apart for; 0: none. keep: names of
    metrics whose sums of each reader are kept."""
    self._count = count
    self._asked = {metric.name: metric for metric in asked}
    self._groups = groups
    self._keep = keep
    self._found = Scores({}, {}, {}, {})

  def add(self, chosen: np.ndarray, parts: Sequence[dict[str, Any]]) -> None:
    """Sums [k or more, ...] by name of the `chosen` readers [k]: one part for
    each group of rows. Without readers the names alone are learned."""
    for name in parts[0]:
      found = [np.asarray(part[name])[: len(chosen)] for part in parts]
      if name.startswith(_METRIC):
        self._add_metric(name, chosen, found)
        continue
      shape = (self._count, self._groups, 2)
      shape = shape if self._groups else (self._count, 2)
      whole = self._found.sums.setdefault(name, np.zeros(shape, np.float32))
      whole[chosen] = np.stack(found, 1) if self._groups else found[0]

  def _add_metric(self, name: str, chosen, found: list[np.ndarray]) -> None:
    _, kind, model = name.split('/', 2)
    metric, key = self._asked[kind], (kind, model)
    sums = np.sum(found, axis=0, dtype=np.float64)
    total = self._found.totals.setdefault(key, np.zeros(sums.shape[1:]))
    total += sums.sum(axis=0)
    if not metric.table:
      values = self._found.values.setdefault(key, np.zeros(self._count))
      values[chosen] = metrics.finished(metric, sums)
    if kind in self._keep:
      shape = (self._count, *sums.shape[1:])
      self._found.kept.setdefault(key, np.zeros(shape))[chosen] = sums

  def scores(self, peers) -> Scores:
    """All of it, of all processes, each of which added its own readers."""
    return Scores(*peers.summed(tuple(self._found)))


def losses(own, new) -> dict[str, float | None]:
  """Losses over all tokens, or rows, of clients: a sum over a count, so that
  exp of it is their perplexity; and of the worst tenth of the clients, each by
  its own mean. own, new: sums [n, 2] of clients, and of unseen ones."""
  each = metrics.mean(own)
  each = each[np.isfinite(each)]
  return {
    'own_token_loss': float(metrics.mean(own.sum(0))),
    'own_loss_worst_decile': -metrics.worst_decile(-each),
    'unseen_token_loss': None
    if new is None
    else float(metrics.mean(new.sum(0))),
  }


def summary(asked: Sequence[Metric], own: Scores, whole: Scores, new) -> dict:
  """{metric: {model: {...}}} of scores on own rows, pooled rows and, or None,
  of newcomers: 'own_mean' and 'unseen' are means over clients, 'own' is of all
  clients' own rows together, 'pooled' the mean over clients; of a table 'own'
  and 'pooled' alone, summed over clients."""
  found: dict[str, dict] = {}
  for metric in asked:
    for kind, model in own.totals:
      if kind != metric.name:
        continue
      key, told = (kind, model), found.setdefault(kind, {})
      made = metric.finish(own.totals[key])
      if metric.table:
        pooled = metric.finish(whole.totals[key])
        told[model] = {'own': _listed(made), 'pooled': _listed(pooled)}
        continue
      told[model] = {
        'own_mean': _mean(own.values[key]),
        'own': _known(made),
        'pooled': _mean(whole.values[key]),
        'unseen': _mean(new.values[key]) if new else None,
      }
  return found


def _listed(table) -> list:
  return np.asarray(table).tolist()


def _known(value) -> float | None:
  return float(value) if np.isfinite(value) else None


def _mean(values: np.ndarray) -> float | None:
  """The mean of those that are known."""
  known = values[np.isfinite(values)]
  return float(known.mean()) if len(known) else None
