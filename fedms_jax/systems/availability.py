"""When clients are online: traces as pure functions of virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.streams import Stream

HOUR, DAY = 3600.0, 86400.0
_TRACES = 512  # different ones that are generated, at most
_DAYS = 7  # after which they repeat


class Availability(NamedTuple):
  """Traces, and who follows which.

  Trace d has the intervals [begins, ends] number offsets[d] to offsets[d + 1],
  in order and apart, within [0, period[d]] seconds, and is repeated for ever.
  trace: int [N], of each client, -1 for one that is always online. shift:
  seconds [N] that a client is ahead of its trace.
  """

  offsets: np.ndarray
  begins: np.ndarray
  ends: np.ndarray
  period: np.ndarray
  trace: np.ndarray
  shift: np.ndarray

  def online(self, ids: np.ndarray, time: float) -> np.ndarray:
    """Whether clients [K] are online at a time, bool [K]; both ends of an
    interval belong to it."""
    place, within = self._at(ids, time)
    inside = (place >= 0) & (within <= self.ends[np.maximum(place, 0)])
    return inside | (self.trace[ids] < 0)

  def on_for(self, ids: np.ndarray, time: float) -> np.ndarray:
    """Seconds [K] that clients stay online from a time on, 0 for who is not.

    An interval that ends with its period goes on in one that begins there.
    """
    place, within = self._at(ids, time)
    trace, place = np.maximum(self.trace[ids], 0), np.maximum(place, 0)
    left = self.ends[place] - within
    first, whole = self.offsets[trace], self.period[trace]
    wraps = (self.ends[place] >= whole) & (self.begins[first] <= 0)
    left = np.where(wraps, left + self.ends[first], left)
    always = wraps & (self.ends[first] >= whole) | (self.trace[ids] < 0)
    left = np.where(self.online(ids, time), left, 0.0)
    return np.where(always, np.inf, left)

  def next_on(self, ids: np.ndarray, time: float) -> np.ndarray:
    """The earliest times [K], `time` or later, at which clients are online."""
    on = self.online(ids, time)
    place, within = self._at(ids, time)
    trace = np.maximum(self.trace[ids], 0)
    following = np.maximum(place + 1, self.offsets[trace])
    later = following < self.offsets[trace + 1]
    coming = np.where(later, following, self.offsets[trace])
    wait = self.begins[coming] - within
    wait = np.where(later, wait, wait + self.period[trace])
    return np.where(on, time, time + wait)

  def _at(self, ids: np.ndarray, time) -> tuple[np.ndarray, np.ndarray]:
    """(the last interval that begins by then, -1 for none, the second within
    the trace). All traces lie one after another on one line, so that one
    search finds the places of all clients."""
    trace = np.maximum(self.trace[ids], 0)
    within = np.mod(np.asarray(time) + self.shift[ids], self.period[trace])
    first = np.concatenate([[0.0], np.cumsum(self.period)])
    owner = np.repeat(np.arange(len(self.period)), np.diff(self.offsets))
    line = first[owner] + self.begins
    place = np.searchsorted(line, first[trace] + within, side='right') - 1
    return np.where(place < self.offsets[trace], -1, place), within


def traces(
  found: Sequence[tuple[Sequence[float], Sequence[float], float]],
  trace: np.ndarray,
  shift: np.ndarray | None = None,
) -> Availability:
  """Checked traces.

  Args:
    found: (begins, ends, period) of each, in seconds.
    trace: int [N], see `Availability`.
    shift: seconds [N]; None: 0.

  Raises:
    ValueError: a trace is none.
  """
  for number, (begins, ends, period) in enumerate(found):
    fine = len(begins) == len(ends) > 0
    if fine:
      both = np.ravel(np.column_stack([begins, ends]))
      fine = bool((np.diff(both) >= 0).all()) and both[0] >= 0
      fine &= both[-1] <= period < np.inf and period > 0
    if not fine:
      raise ValueError(
        f'trace {number} is no list of intervals in which a client is online: '
        f'{len(begins)} begin, {len(ends)} end, and it lasts {period:g} s; '
        'allowed: at least one, in order, each begins before it ends, within '
        'what the trace lasts.'
      )
  counts = [len(begins) for begins, _, _ in found]
  return Availability(
    np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    np.concatenate([np.asarray(b, float) for b, _, _ in found]),
    np.concatenate([np.asarray(e, float) for _, e, _ in found]),
    np.asarray([period for *_, period in found], float),
    trace,
    np.zeros(len(trace)) if shift is None else shift,
  )


def of_fedscale(found: Mapping[Any, Any], clients: int) -> Availability:
  """FedScale's traces: {device: {'active': seconds, 'inactive': seconds,
  'finish_time': seconds}}, where a device is online from each `active` to the
  `inactive` of the same place. Client k has the k-th device, in turn.

  FedScale itself keeps a place per client that moves by one for each question,
  and so is wrong after a jump in time; here the time alone decides.

  Raises:
    ValueError: it is no such table.
  """
  made = []
  for key, one in found.items():
    try:
      begins = [float(x) for x in one['active']]
      ends = [float(x) for x in one['inactive']]
      period = float(one['finish_time'])
    except (KeyError, TypeError, ValueError):
      raise ValueError(
        f'device {key!r} of a table of availability lacks numbers under '
        "'active', 'inactive' and 'finish_time'."
      ) from None
    if len(begins) == len(ends) + 1:
      ends.append(period)  # it is online when the trace ends
    made.append((begins, ends, period))
  return traces(made, np.arange(clients) % len(made))


def diurnal(
  clients: int, seed: int, *, on: float = 2.0, off: float = 6.0
) -> Availability:
  """Traces in which clients come and go, most of them at night (ours).

  A semi-Markov process of two states: online for a lognormal time of median
  `on` hours (sigma 0.5), and offline until it comes back, with a chance of 1 /
  `off` per hour by day and of four times that between 22 and 6 o'clock of the
  client's own day, which begins at a random time. Up to 512 different weeks
  are repeated.
  """
  rng = np.random.default_rng([seed, Stream.DEVICES.number, 1])
  made = []
  for _ in range(min(clients, _TRACES)):
    begins, ends, at = [], [], _back(rng, 0.0, off)
    while at < _DAYS * DAY or not begins:
      if not begins:  # each trace is on at some time
        at = min(at, _DAYS * DAY - HOUR)
      end = at + on * HOUR * rng.lognormal(0.0, 0.5)
      begins.append(at)
      ends.append(min(end, _DAYS * DAY))
      at = _back(rng, end, off)
    made.append((begins, ends, _DAYS * DAY))
  shift = rng.uniform(0.0, _DAYS * DAY, clients)
  return traces(made, np.arange(clients) % len(made), shift)


def _back(rng: np.random.Generator, time: float, off: float) -> float:
  """When a client that goes offline comes back, see `diurnal`."""
  while True:  # by thinning: of the chances of the night those of the day
    time += off / 4 * HOUR * rng.exponential()
    night = not 6 <= time % DAY / HOUR < 22
    if night or rng.random() < 0.25:
      return time
