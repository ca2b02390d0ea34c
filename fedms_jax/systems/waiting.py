"""Rounds that wait for their cohort, with a clock: over-selection, deadlines,
partial work, clients that leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.systems.arrivals import Arrivals, Cost, Heard, Json, Reports
from fedms_jax.systems.devices import Devices
from fedms_jax.systems.selection import Draw, Known, Selection, remembered

Lost = Callable[[int, np.ndarray], np.ndarray]


class Waiting(NamedTuple):
  """How long a round waits.

  size: K, reports that it takes. over: as many times K clients begin (Bonawitz
  et al., arXiv 1902.01046; FedScale's is 1.3); when K have reported, the others
  are told to stop. deadline: seconds after which nobody is waited for; inf:
  none. least: share of K; if fewer have met the deadline the round fails, and
  changes nothing (FLASH). partial: whoever would be late takes as many local
  steps as there is time for (FedProx, arXiv 1812.06127, there of epochs).
  """

  size: int
  over: float = 1.0
  deadline: float = math.inf
  least: float = 0.0
  partial: bool = False


class _Times(NamedTuple):
  """Of clients that have begun, [K]: when each would have done its part, when
  it goes offline, and who is lost though it has done all."""

  ends: np.ndarray
  leaves: np.ndarray
  gone: np.ndarray


def begin() -> dict[str, Any]:
  """The first state of arrivals with a clock: the virtual second, and how often
  each client has reported."""
  return {'now': 0.0, 'count': {}}


def started(selection: Selection) -> dict[str, Any]:
  """The same, with the memory of a selection."""
  return begin() | {'memory': selection.init, 'took': {}}


def carried(selection: Selection) -> Callable[[Json], Json]:
  """What a stage begins with after another one: its clock goes on."""

  def carry(state: Json) -> Json:
    past = state if isinstance(state, dict) and 'now' in state else begin()
    kept = {name: past[name] for name in ('now', 'count')}
    return started(selection) | kept

  return carry


def counted(count: dict[str, int], ids: np.ndarray) -> dict[str, int]:
  """The counts with one more for these clients."""
  return count | {str(i): count.get(str(i), 0) + 1 for i in ids.tolist()}


def hearing(selection: Selection) -> Callable[[Json, Heard], Json] | None:
  """What a selection that hears makes of reports; None: it does not."""
  if not selection.hears:
    return None

  def heard(state: Json, said: Heard) -> Json:
    ids = said.ids.tolist()
    known = [
      Known(float(loss), float(rows), state['took'].get(str(i), 0.0), said.step)
      for i, loss, rows in zip(ids, said.loss, said.rows, strict=True)
      if rows > 0
    ]
    some = said.ids[np.asarray(said.rows) > 0]
    return state | {'memory': remembered(state['memory'], some, known)}

  return heard


def waiting(
  how: Waiting,
  devices: Devices,
  selection: Selection,
  lost: Lost | None = None,
) -> Arrivals:
  """Each round waits for a cohort, as `how` says.

  It ends when K have reported; else at the deadline; without one, when all who
  began have reported or left, which the server is taken to notice at once, as
  it is that a report does not come (`lost`) when it was due. If nobody is
  online, time passes until somebody is.

  lost: (round, ids) -> who does all and is lost, bool [K]; None: nobody.
  """

  def due(state: Json, step: int, cost: Cost | None):
    assert cost is not None
    now = devices.next_on(state['now'])
    count = math.ceil(how.over * how.size - 1e-9)
    nobody = np.zeros(0, np.int64)
    draw = Draw(step, 0, count, nobody, devices.online(now))
    ids, memory = selection.choose(state['memory'], draw)
    tasks = cost(ids)
    taken, share = devices.phases(ids, tasks), np.ones(len(ids))
    if how.partial:
      share = _fitting(taken, tasks.steps, how.deadline)
    taken[:, 1] *= share
    leaves = now + devices.on_for(ids, now)
    gone = np.zeros(len(ids), bool) if lost is None else lost(step, ids)
    times = _Times(now + taken.sum(axis=1), leaves, gone)
    kept, end, told = _outcome(how, ids, times, now, share)
    after = {
      'now': end,
      'count': counted(state['count'], ids[kept]),
      'memory': memory,
      'took': _took(selection, ids[kept], taken[kept].sum(axis=1)),
    }
    spent = _spent(taken, np.minimum(end, leaves) - now)
    spent[kept] = 1.0
    spent[gone, 2] = 0.0
    passed, versions = end - state['now'], np.full(len(ids), step)
    return after, Reports(ids, versions, ~kept, passed, share, spent, told)

  made = Arrivals(started(selection), due, live=True, sampled=False)
  return made._replace(heard=hearing(selection), carry=carried(selection))


def _took(selection: Selection, ids: np.ndarray, seconds: np.ndarray):
  """Seconds of tasks by client, for who asks."""
  if not selection.hears:
    return {}
  return {str(i): float(s) for i, s in zip(ids.tolist(), seconds, strict=True)}


def _fitting(phases: np.ndarray, steps: np.ndarray, deadline: float):
  """The shares of their steps [K] for which clients have the time, at least
  one step."""
  left = deadline - phases[:, 0] - phases[:, 2]
  each = phases[:, 1] / np.maximum(steps, 1)
  fits = np.full(len(steps), np.inf)
  np.divide(left, each, out=fits, where=each > 0)
  fits = np.floor(fits + 1e-9)
  return np.clip(fits, 1, np.maximum(steps, 1)) / np.maximum(steps, 1)


def _outcome(how: Waiting, ids, times: _Times, now: float, share):
  """(who is kept, bool [K]; when the round ends; metrics)."""
  limit = now + how.deadline
  offline = times.leaves < times.ends
  # A client that fits its work to the deadline is there in time.
  late = ~offline & (times.ends > limit + 1e-9 * how.deadline)
  came = ~offline & ~late & ~times.gone
  order = np.lexsort((ids, times.ends))
  order = order[came[order]]
  kept = np.zeros(len(ids), bool)
  kept[order[: how.size]] = True
  failed = how.deadline < math.inf and kept.sum() < how.least * how.size
  if failed:
    kept[:] = False
  if len(order) >= how.size:
    end = times.ends[order[how.size - 1]]
  elif how.deadline < math.inf:
    end = limit
  else:
    end = np.minimum(times.ends, times.leaves).max(initial=now)
  told = {
    'offline': int(offline.sum()),
    'late': int(late.sum()),
    'cancelled': 0 if failed else int((came & ~kept).sum()),
    'failed': int(failed),
    'partial': int((kept & (share < 1)).sum()),
    'virtual_clock': float(end),
  }
  return kept, float(end), told


def _spent(phases: np.ndarray, passed: np.ndarray) -> np.ndarray:
  """Shares [K, 3] of what clients receive, compute and send that are done after
  so many seconds [K]."""
  before = np.cumsum(phases, axis=1) - phases
  left = passed[:, None] - before
  whole = np.where(left >= 0, 1.0, 0.0)
  some = np.divide(left, phases, out=whole, where=phases > 0)
  return np.clip(some, 0.0, 1.0)
