"""Signals that ask a run to save and stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

# The exit code of a run that was asked to stop and has saved: start it again
# and resume. (EX_TEMPFAIL of sysexits.h; schedulers can requeue on it.)
EXIT_SAVED = 75

# Seconds until a main thread that is busy in a library (it waits for a
# coordinator, compiles, computes) is not waited for, and until one that has
# heard is to have closed its files.
PATIENCE, CLOSING = 1.5, 10.0


class Stopped(BaseException):
  """The run was asked to stop where there is nothing to save.

  No `Exception`, so that no library takes it for a failure of its own.
  """


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
    self._at_once = False
    self._saves = False  # a signal waits for the end of a round

  def requested(self) -> str:
    """The name of the signal that asked to stop, or '' if none did."""
    return self._name

  @contextlib.contextmanager
  def at_once(self, leave: Callable[[str], None]) -> Iterator[None]:
    """Inside, a signal does not wait for the end of a round: it raises
    `Stopped`.

    leave: ends the process, given the signal's name; called from a thread if
    the main one is busy in a library and does not hear.
    """
    if not self._before:  # nothing is caught here
      yield
      return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # Written to by the handler in C, which needs no turn of the main thread.
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    done = threading.Event()
    watch = threading.Thread(
      target=self._watch, args=(reading, done, leave), daemon=True
    )
    watch.start()
    self._at_once = True
    try:
      self._raise_if_asked()
      yield
    finally:
      self._at_once = False
      done.set()
      signal.set_wakeup_fd(before)
      os.close(writing)  # which ends the thread
      watch.join()
      os.close(reading)

  @contextlib.contextmanager
  def between_rounds(self) -> Iterator[None]:
    """Inside `at_once`: signals wait for `requested()` again; one that was
    not answered raises `Stopped` at the end."""
    before, self._at_once = self._at_once, False
    try:
      yield
    finally:
      self._at_once = before
    if before:
      self._raise_if_asked()

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
    first = not self._name
    self._name = self._name or signal.Signals(number).name
    if number == signal.SIGINT and number in self._before:
      signal.signal(number, self._before.pop(number))
    if first:
      self._saves = not self._at_once
      if self._at_once:
        raise Stopped(self._name)

  def _raise_if_asked(self) -> None:
    if self._name:
      raise Stopped(self._name)

  def _watch(self, reading: int, done: threading.Event, leave) -> None:
    """Ends the process if a signal finds the main thread deaf."""
    while data := os.read(reading, 1):
      number = data[0]
      if number not in self.SIGNALS or not self._at_once or self._saves:
        continue
      done.wait(PATIENCE)
      if self._name:  # it has heard, and is closing its files
        done.wait(CLOSING)
      if not done.is_set() and self._at_once:
        leave(signal.Signals(number).name)


def leave(code: int) -> None:
  """Ends the process at once, whatever its threads wait for."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)
