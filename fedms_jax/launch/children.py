"""Child processes that get the launcher's signals, each exactly once."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence


class Children:
  """Processes that are started, told of signals, and waited for.

  Each has a session of its own: an interrupt from the terminal reaches the
  launcher alone, which passes it on, so that none gets it twice.
  """

  SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

  def __init__(self):
    self.stopping = False  # whether a signal came
    self._all: list[subprocess.Popen] = []
    self._threads: list[threading.Thread] = []
    self._before = {}

  def start(
    self,
    command: Sequence[str],
    log: pathlib.Path,
    environment: Mapping[str, str],
    show: bool = False,
  ) -> subprocess.Popen:
    """Starts a process whose output is appended to a log file, and shown in
    the terminal as well if `show`."""
    with open(log, 'ab') as file:
      child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if show else file,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
      )
    self._all.append(child)
    if show:
      thread = threading.Thread(target=_copy, args=(child.stdout, log))
      thread.start()
      self._threads.append(thread)
    return child

  def stop(self, grace: float) -> None:
    """Asks what still runs to end, and kills it after `grace` seconds."""
    self._send(signal.SIGTERM)
    end = time.monotonic() + grace
    while self._alive() and time.monotonic() < end:
      time.sleep(0.05)
    self._send(signal.SIGKILL)

  def _alive(self) -> list[subprocess.Popen]:
    return [child for child in self._all if child.poll() is None]

  def _send(self, number: int) -> None:
    for child in self._alive():
      os.killpg(child.pid, number)

  def _forward(self, number: int, frame) -> None:
    del frame
    self.stopping = True
    self._send(number)

  def __enter__(self) -> Children:
    for number in self.SIGNALS:
      self._before[number] = signal.signal(number, self._forward)
    return self

  def __exit__(self, kind, *unused) -> None:
    if kind is not None:
      self.stop(10.0)
    for child in self._all:
      child.wait()
    for thread in self._threads:
      thread.join()
    for number, handler in self._before.items():
      signal.signal(number, handler)


def _copy(stream, log: pathlib.Path) -> None:
  """Copies what a process prints to its log and to the terminal, at once."""
  terminal = sys.stdout.buffer
  with stream, open(log, 'ab', buffering=0) as file:
    while data := stream.read1(65536):
      file.write(data)
      if terminal is not None:
        try:
          terminal.write(data)
          terminal.flush()
        except OSError:  # nobody looks any more; the process goes on
          terminal = None
