"""What tests of arrivals share: toy devices, and who does what."""

import numpy as np

from fedms_jax.systems import availability
from fedms_jax.systems.arrivals import Tasks
from fedms_jax.systems.devices import Devices
from fedms_jax.systems.selection import Selection


def computing(*seconds):
  """Devices whose tasks take these seconds, all of them computing."""
  none = np.full(len(seconds), np.inf)
  return Devices(1 / np.array(seconds, float), none, none)


def always_on(which, *intervals):
  """The devices, of which client k is online in [0, intervals[k]] of 1000 s;
  None: always."""
  known = [(([0.0], [x], 1000.0)) for x in intervals if x is not None]
  trace, place = [], 0
  for x in intervals:
    trace.append(-1 if x is None else place)
    place += x is not None
  made = availability.traces(known, np.array(trace))
  return which._replace(availability=made)


def cost(ids, steps=1):
  """One FLOP each, and as many bytes."""
  one = np.ones(len(ids))
  return Tasks(one, one, one, np.full(len(ids), steps))


def first(count=None):
  """Those with the smallest ids, of any number."""

  def choose(memory, draw):
    n = len(draw.online) if draw.online is not None else count
    free = [
      i
      for i in range(n)
      if i not in draw.busy and (draw.online is None or draw.online[i])
    ]
    return np.array(free[: draw.count], np.int64), memory

  return Selection(None, choose)


def played(arrivals, steps, cost=cost):
  """The reports of the first steps, and the last state."""
  state, out = arrivals.init, []
  for step in range(steps):
    state, reports = arrivals.next(state, step, cost)
    out.append(reports)
  return out, state
