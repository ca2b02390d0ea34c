"""Who reports in a server step: time as a value.

Arrivals are a pure state machine on the host, whose state is JSON: checkpoints
hold it, and a resumed run goes on from it. Who waits for a whole cohort is in
`waiting.py`, who does not in `buffered.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Json = Any


class Tasks(NamedTuple):
  """What clients do that begin now, [K] each: bytes that each receives and
  sends, FLOPs, local steps."""

  down: np.ndarray
  flops: np.ndarray
  up: np.ndarray
  steps: np.ndarray


# Ids [K] of clients that begin in this step, each once -> what they do.
Cost = Callable[[np.ndarray], Tasks]


class Reports(NamedTuple):
  """Clients whose tasks end in a server step.

  ids: int64 [K], distinct, ascending; none is legal. versions: int64 [K], the
  step whose model each began with. lost: bool [K], whose report never comes:
  it has received the model, and sends nothing. seconds: virtual time that the
  step took. share: float [K], of its local steps that each has done; None: all.
  spent: float [K, 3], shares of what each receives, computes and sends that it
  has; None: all, but who is lost sends nothing. told: metrics of the step.
  """

  ids: np.ndarray
  versions: np.ndarray
  lost: np.ndarray
  seconds: float = 0.0
  share: np.ndarray | None = None
  spent: np.ndarray | None = None
  told: Mapping[str, float] = {}


class Heard(NamedTuple):
  """What clients reported in a step, [K] each: mean training loss, and over how
  many examples of its steps."""

  step: int
  ids: np.ndarray
  loss: np.ndarray
  rows: np.ndarray


class Arrivals(NamedTuple):
  """Who reports when.

  next: (state, step, cost) -> (state, reports); a client is never twice in
  flight. live: whether `next` needs `cost` or what was heard, so that it is
  asked when the plan of the step is known; else cost is None. late: how many
  steps a report may be older than the one that takes it; 0: none is; -1: any.
  sampled: whether the sampler alone decides who reports, as accounts of privacy
  assume. heard: (state, what was reported in the step before) -> state; None:
  nobody listens. carry: last state of the stage before, if its arrivals have
  `carry`, too -> the first one; None: `init` is.
  """

  init: Json
  next: Callable[[Json, int, Cost | None], tuple[Json, Reports]]
  live: bool = False
  late: int = 0
  sampled: bool = True
  heard: Callable[[Json, Heard], Json] | None = None
  carry: Callable[[Json], Json] | None = None


def check_reports(reports: Reports, step: int, late: int = 0) -> None:
  """Raises `ValueError` for reports that began with the model of a later step,
  or one over `late` steps back (-1: any)."""
  first = 0 if late < 0 else step - late
  odd = (reports.versions > step) | (reports.versions < first)
  if (odd & ~reports.lost).any():
    raise ValueError(
      f'reports of step {step} began with the models of '
      f'{sorted(set(reports.versions.tolist()))[:5]}; allowed: '
      f'{max(first, 0)} to {step}. Give the arrivals a larger `late`.'
    )


def synchronous(
  sample: Callable[[int], np.ndarray],
  lost: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Arrivals:
  """Each step waits for the whole cohort that it has sampled.

  sample: round -> ids. lost: (round, ids) -> bool [K]; None: nobody is. Both
  are pure, so that there is no state.
  """

  def due(state: Json, step: int, cost: Cost | None):
    del cost
    ids = np.asarray(sample(step), np.int64)
    gone = np.zeros(len(ids), bool) if lost is None else lost(step, ids)
    return state, Reports(ids, np.full(len(ids), step), gone)

  return Arrivals(None, due)
