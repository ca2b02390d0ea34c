"""Who reports in a server step: time as a value.

Arrivals are a pure state machine on the host, whose state is JSON: checkpoints
hold it, and a resumed run goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Json = Any
# Ids [K] of clients -> seconds that each takes for a round, float [K].
Seconds = Callable[[np.ndarray], np.ndarray]


class Reports(NamedTuple):
  """Clients whose reports are due in a server step.

  ids: int64 [K], distinct, ascending; none is legal. versions: int64 [K], the
  step whose model each began with. lost: bool [K], whose report never comes:
  it has received the model, and sends nothing. seconds: virtual time of the
  step.
  """

  ids: np.ndarray
  versions: np.ndarray
  lost: np.ndarray
  seconds: float = 0.0


class Arrivals(NamedTuple):
  """Who reports when. next: (state, step, seconds) -> (state, reports); a
  client is never twice in flight."""

  init: Json
  next: Callable[[Json, int, Seconds | None], tuple[Json, Reports]]


def check_synchronous(reports: Reports, step: int) -> None:
  """Raises `ValueError` for reports of a server step that is not the one in
  which their clients began: they would be trained from another model."""
  if (reports.versions != step).any() or reports.seconds:
    raise ValueError(
      f'reports of step {step} began with the models of '
      f'{sorted(set(reports.versions.tolist()))[:5]} and took '
      f'{reports.seconds:g} virtual seconds; allowed: {step}, and 0. Every '
      'report is trained from the newest model, and nothing has a clock.'
    )


def synchronous(
  sample: Callable[[int], np.ndarray],
  lost: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Arrivals:
  """Each step waits for the whole cohort that it has sampled.

  sample: round -> ids. lost: (round, ids) -> bool [K]; None: nobody is. Both
  are pure, so that there is no state.
  """

  def due(state: Json, step: int, seconds: Seconds | None):
    del seconds
    ids = np.asarray(sample(step), np.int64)
    gone = np.zeros(len(ids), bool) if lost is None else lost(step, ids)
    return state, Reports(ids, np.full(len(ids), step), gone)

  return Arrivals(None, due)
