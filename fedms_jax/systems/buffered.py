"""Asynchronous arrivals: the server steps when enough reports have come, and
clients begin whenever others end (FedBuff, arXiv 2106.06639; with a buffer of
one report also FedAsync, arXiv 1903.03934)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedms_jax.systems.arrivals import Arrivals, Cost, Json, Reports
from fedms_jax.systems.devices import Devices
from fedms_jax.systems.selection import Draw, Selection
from fedms_jax.systems.waiting import (
  Lost,
  carried,
  counted,
  hearing,
  started,
)


class Buffered(NamedTuple):
  """When the server steps.

  buffer: K, reports of a step. concurrency: M, clients in flight. late: server
  steps that a report may be old; staler ones are thrown away, and charged; -1:
  any is taken.
  """

  buffer: int
  concurrency: int
  late: int = -1


class _Task(NamedTuple):
  """A client in flight. end: when it reports or leaves. phases: seconds that it
  receives, computes and sends, as far as it comes. fate: 'comes', 'offline' or
  'lost'."""

  end: float
  id: int
  version: int
  start: float
  phases: list[float]
  fate: str


class _Step:
  """What happens until the server's next step."""

  def __init__(self, how, devices, selection, lost, state, step, cost):
    self.how, self.devices, self.selection = how, devices, selection
    self.lost, self.step, self.cost = lost, step, cost
    self.now, self.memory = state['now'], state['memory']
    self.running = [_Task(*task) for task in state['running']]
    self.ended: list[tuple[_Task, str]] = []
    self.part = 0

  def run(self) -> None:
    """Until the buffer is full, or nobody is left who could fill it."""
    while self.came() < self.how.buffer:
      self.fill()
      if not self.running:
        later = self.devices.next_on(self.now)
        if later <= self.now:
          return  # all that are online have just had their turn
        self.now = later
        continue
      self.now = min(task.end for task in self.running)
      due = [task for task in self.running if task.end == self.now]
      for task in sorted(due, key=lambda task: task.id):
        if self.came() == self.how.buffer:
          return  # at the same instant, and for the next step
        self.end(task)

  def came(self) -> int:
    return sum(fate == 'comes' for _, fate in self.ended)

  def end(self, task: _Task) -> None:
    """A task is over; one that comes too late is thrown away."""
    late, fate = self.how.late, task.fate
    if fate == 'comes' and 0 <= late < self.step - task.version:
      fate = 'stale'
    self.running.remove(task)
    self.ended.append((task, fate))

  def fill(self) -> None:
    """Clients begin where others have ended, with the newest model. Who has
    ended in this step has no second turn in it."""
    count = self.how.concurrency - len(self.running)
    if count < 1:
      return
    tasks = [*self.running, *(task for task, _ in self.ended)]
    busy = np.array([task.id for task in tasks], np.int64)
    draw = Draw(
      self.step, self.part, count, busy, self.devices.online(self.now)
    )
    ids, self.memory = self.selection.choose(self.memory, draw)
    self.part += 1
    if not len(ids):
      return
    phases = self.devices.phases(ids, self.cost(ids))
    ends = self.now + phases.sum(axis=1)
    leaves = self.now + self.devices.on_for(ids, self.now)
    gone = np.zeros(len(ids), bool)
    if self.lost is not None:
      gone = self.lost(self.step, ids)
    for i, id in enumerate(ids.tolist()):
      end, fate = float(ends[i]), 'lost' if gone[i] else 'comes'
      if leaves[i] < end:
        end, fate = float(leaves[i]), 'offline'
      self.running.append(
        _Task(end, id, self.step, self.now, phases[i].tolist(), fate)
      )

  def spent(self, task: _Task, fate: str) -> list[float]:
    """Shares of what the client receives, computes and sends."""
    if fate != 'offline':
      return [1.0, 1.0, float(fate != 'lost')]
    left, out = task.end - task.start, []
    for phase in task.phases:
      out.append(
        min(1.0, max(left, 0.0) / phase) if phase else float(left >= 0)
      )
      left -= phase
    return out


def buffered(
  how: Buffered,
  devices: Devices,
  selection: Selection,
  lost: Lost | None = None,
) -> Arrivals:
  """The server steps whenever `how.buffer` reports have come.

  A free slot is taken at once, by a client that gets the newest model, unless
  the reports of the same instant fill the buffer: then the server steps first.
  Of reports of one instant that with the smaller id comes first. Who goes
  offline is lost at that moment. What is in flight when a stage ends is
  dropped, and not charged. The rule of ties, and that nobody is twice in a
  step, are ours.

  lost: (step in which they began, ids) -> who does all and is lost, bool [K];
  None: nobody.
  """

  def due(state: Json, step: int, cost: Cost | None):
    turn = _Step(how, devices, selection, lost, state, step, cost)
    turn.run()
    return _after(turn, state)

  def begun(state: dict[str, Any]) -> dict[str, Any]:
    return state | {'running': []}

  carry = carried(selection)
  return Arrivals(
    begun(started(selection)),
    due,
    live=True,
    late=how.late,
    sampled=False,
    heard=hearing(selection),
    carry=lambda state: begun(carry(state)),
  )


def _after(turn: _Step, state: Json) -> tuple[Json, Reports]:
  """(the state after a step, its reports). state: before it."""
  ended = sorted(turn.ended, key=lambda pair: pair[0].id)
  ids = np.array([task.id for task, _ in ended], np.int64)
  versions = np.array([task.version for task, _ in ended], np.int64)
  kept = np.array([fate == 'comes' for _, fate in ended], bool)
  took = {}
  if turn.selection.hears:
    took = {str(t.id): t.end - t.start for t, f in ended if f == 'comes'}
  after = {
    'now': turn.now,
    'count': counted(state['count'], ids[kept]),
    'memory': turn.memory,
    'took': took,
    'running': [list(task) for task in turn.running],
  }
  spent = [turn.spent(task, fate) for task, fate in ended]
  spent = np.array(spent, float).reshape(-1, 3)
  told = _told(turn, turn.step - versions[kept])
  passed = turn.now - state['now']
  return after, Reports(ids, versions, ~kept, passed, None, spent, told)


def _told(turn: _Step, old: np.ndarray) -> dict[str, float]:
  """Metrics of a step. old: how many steps each report that came was."""
  fates = [fate for _, fate in turn.ended]
  return {
    'offline': fates.count('offline'),
    'stale': fates.count('stale'),
    'in_flight': len(turn.running),
    'staleness_mean': float(old.mean()) if len(old) else 0.0,
    'staleness_max': int(old.max(initial=0)),
    'virtual_clock': turn.now,
  }
