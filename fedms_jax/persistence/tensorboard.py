"""TensorBoard events of a run."""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import Any

from fedms_jax.persistence import loggers
from fedms_jax.persistence.loggers import Setting, Values


class TensorBoard:
  """The scalars of each stage in a folder of its name, and in the folder
  above, at the end, the scores beside the settings (the tab HPARAMS).

  All stages have one axis, so that they follow each other in a picture. Events
  are written by the thread that calls, so that an error of the disk is raised
  where it happens. (tensorboardX's own writer has a thread, which dies of it
  and leaves the run waiting.)
  """

  FLUSH_SECONDS = 10.0

  def __init__(self, setting: Setting):
    """Writes below `tensorboard/` in the workdir."""
    # Lazy: not every run needs it, and `loggers.check` says what is missing.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    self._summary = summary
    self._events: Any = event_pb2  # made by protobuf, without types
    self._new = event_file_writer.EventsWriter
    self._folder = setting.root / 'tensorboard'
    self._settings = setting.settings
    self._first: int | None = None
    self._writers = {}
    self._flushed = time.monotonic()

  def begin(self, first: int | None) -> None:
    self._first = first

  def write(self, stage: str, step: int, values: Values) -> None:
    """Adds the numbers among `values`."""
    writer = self._opened(folder(stage))
    for name, value in loggers.numbers(values).items():
      self._scalar(writer, step, name, value)
    if time.monotonic() - self._flushed > self.FLUSH_SECONDS:
      self._flushed = time.monotonic()
      writer.flush()

  def finish(self, step: int, summary: Values) -> None:
    """Adds the scores, and the settings that led to them."""
    found, writer = loggers.scores(summary), self._opened('')
    for part in self._summary.hparams(dict(self._settings), found):
      writer.write_event(self._event(step, summary=part))
    for name, value in found.items():
      self._scalar(writer, step, name, value)

  def close(self) -> None:
    with contextlib.ExitStack() as stack:  # one that fails keeps none open
      for writer in self._writers.values():
        stack.callback(writer.close)
    self._writers = {}

  def _opened(self, name: str):
    """The file of a folder, in which TensorBoard is told to hide what an
    earlier start wrote after the checkpoint that this one goes on from."""
    if name not in self._writers:
      root = self._folder / name
      root.mkdir(parents=True, exist_ok=True)
      # Two starts within a second would else share a file.
      own = f'.{os.getpid()}'
      writer = self._writers[name] = self._new(str(root / 'events'), own)
      if self._first is not None:
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        writer.write_event(self._event(self._first, session_log=start))
    return self._writers[name]

  def _scalar(self, writer, step: int, name: str, value: float) -> None:
    made = self._summary.scalar(name, value)
    writer.write_event(self._event(step, summary=made))

  def _event(self, step: int, **what):
    return self._events.Event(wall_time=time.time(), step=step, **what)


def folder(stage: str) -> str:
  """What the folder of a stage is called."""
  return re.sub(r'[^\w.-]', '_', stage)
