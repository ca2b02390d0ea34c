"""Signals that ask a run to save and stop."""

from __future__ import annotations

import signal
import threading

# The exit code of a run that was asked to stop and has saved: start it again
# and resume. (EX_TEMPFAIL of sysexits.h; schedulers can requeue on it.)
EXIT_SAVED = 75


class StopRequest:
  """While entered, SIGTERM, SIGUSR1 and the first SIGINT become a question.

  The driver asks `requested()` between rounds. A second SIGINT interrupts at
  once, as it does outside. The handlers of before come back at the end.
  Outside the main thread, where Python takes no signals, nothing is caught.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

  def __init__(self):
    self._name = ''
    self._before = {}

  def requested(self) -> str:
    """The name of the signal that asked to stop, or '' if none did."""
    return self._name

  def __enter__(self) -> StopRequest:
    if threading.current_thread() is threading.main_thread():
      for number in self.SIGNALS:
        # None: the handler of before was not set from Python.
        before = signal.signal(number, self._note)
        self._before[number] = before or signal.SIG_DFL
    return self

  def __exit__(self, *unused) -> None:
    while self._before:
      signal.signal(*self._before.popitem())

  def _note(self, number: int, frame) -> None:
    del frame
    self._name = self._name or signal.Signals(number).name
    if number == signal.SIGINT and number in self._before:
      signal.signal(number, self._before.pop(number))
