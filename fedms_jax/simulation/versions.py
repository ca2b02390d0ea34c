"""The inputs of clients that began with the models of several server steps.

Each has those of the step in which it began, whenever its report is due.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.types import ActiveSet, Partition
from fedms_jax.data.cohorts import PADDING
from fedms_jax.systems.arrivals import Heard, Reports


class Timing(NamedTuple):
  """What arrivals say of a cohort. versions: int64 [K], spent: [K, 3], seconds
  and told: see `Reports`. ended: ids of all whose tasks have ended, with rows
  or without. begun: what is active of each client that began in this step, by
  id. before: blocks that had been active when clients began, by earlier step.
  heard: see `Arrivals`."""

  versions: np.ndarray
  spent: np.ndarray | None
  seconds: float
  told: Mapping[str, float]
  ended: np.ndarray
  begun: Mapping[int, ActiveSet] = {}
  before: Mapping[int, ActiveSet] = {}
  heard: Callable[[Any, Heard], Any] | None = None


def timing(reports: Reports, there: np.ndarray) -> Timing:
  """What is said of those clients `there` that have rows, bool [K]."""
  spent = None if reports.spent is None else reports.spent[there]
  return Timing(
    reports.versions[there], spent, reports.seconds, reports.told, reports.ids
  )


def groups(versions: np.ndarray):
  """(version, the places of its clients) of each, in order."""
  for version in np.unique(versions).tolist():
    yield version, np.flatnonzero(versions == version)


def sizes(train: Partition, reports: Reports) -> np.ndarray:
  """Rows that clients had when they began, int64 [K]."""
  out = np.zeros(len(reports.ids), np.int64)
  for version, places in groups(reports.versions):
    offsets, ids = train.at(version).offsets, reports.ids[places]
    out[places] = offsets[ids + 1] - offsets[ids]
  return out


def batches(made: Callable, reports: Reports, there: np.ndarray):
  """(rows [K, S, B], steps [K]) of the clients `there`, cut to the share of
  their steps that they have done.

  made: (ids, version) -> the same of clients of one version.
  """
  ids, versions = reports.ids[there], reports.versions[there]
  parts: list[Any] = [(at, *made(ids[at], v)) for v, at in groups(versions)]
  if not parts:
    return made(ids, 0)
  widest = max(rows.shape[1] for _, rows, _ in parts)
  size = parts[0][1].shape[2]
  rows = np.full((len(ids), widest, size), PADDING, np.int32)
  steps = np.zeros(len(ids), np.int64)
  for at, some, counts in parts:
    rows[at, : some.shape[1]] = some
    steps[at] = counts
  if reports.share is None:
    return rows, steps
  done = np.rint(steps * reports.share[there]).astype(np.int64)
  rows[np.arange(widest) >= done[:, None]] = PADDING
  return rows, done


def fresh(made: Callable, reports: Reports, there: np.ndarray) -> np.ndarray:
  """The further rows [K, F] of the clients `there`. made: (ids, version) ->
  those of clients of one version."""
  ids, versions = reports.ids[there], reports.versions[there]
  parts = [(at, made(ids[at], v)) for v, at in groups(versions)]
  if not parts:
    return made(ids, 0)
  out = np.full((len(ids), parts[0][1].shape[1]), PADDING, np.int32)
  for at, some in parts:
    out[at] = some
  return out
