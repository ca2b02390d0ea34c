"""Observers of a run: progress bars, metrics files, signals."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Silent:
  """An observer that shows nothing and never stops the run."""

  def stage(self, name: str, done: int, total: int) -> None:
    """Called when a stage begins, or resumes after `done` of `total` rounds."""

  def round(self, record: dict[str, Any]) -> None:
    """Called with the metrics of each round."""

  def derived(self, done: int, total: int) -> None:
    """`done` of `total` blocks of rows are derived in a pass over the table."""

  def note(self, text: str) -> None:
    """Called with a decision of the engine that a user may want to know."""

  def compiling(self, what: str) -> None:
    """Called before a round that may have to wait for its programs, with what
    they are for; and with '' when it has begun."""

  def stop_requested(self) -> bool:
    """Whether the run shall save and stop."""
    return False

  def close(self) -> None:
    """The run has ended, well or not."""


class Notes(Silent):
  """Prints decisions of the engine, each text once."""

  def __init__(self):
    self._told: set[str] = set()

  def note(self, text):
    if text not in self._told:
      self._told.add(text)
      import tqdm

      tqdm.tqdm.write(text)  # above a bar, if there is one


class Log(Silent):
  """Prints what a round waits for, where no bar shows it."""

  def __init__(self):
    self._stage = ''

  def stage(self, name, done, total):
    self._stage = name

  def compiling(self, what):
    if what:
      print(f'{self._stage}: compiling for {what}', flush=True)


class Activity(Silent):
  """Tells other processes what a round waits for: `fedms status` reads it.

  write: puts a JSON value into the file of the workdir; None removes it.
  """

  def __init__(self, write: Callable[[Any], None]):
    self._write = write
    self._there = True  # of a run that was killed
    self.compiling('')

  def compiling(self, what):
    if what:
      self._write({'compiling': what, 'unix_seconds': time.time()})
    elif self._there:
      self._write(None)
    self._there = bool(what)

  def close(self):
    self.compiling('')


class Progress(Silent):
  """A tqdm bar per stage, with the running score and depth, and what it waits
  for; and one for a long pass that derives columns."""

  def __init__(self):
    self._bar = None
    self._pass = None
    self._shown = ''

  def stage(self, name, done, total):
    import tqdm

    self.close()
    self._shown = ''
    self._bar = tqdm.tqdm(
      total=total,
      initial=done,
      desc=f'{name:<9}',
      unit='round',
      dynamic_ncols=True,
    )

  def round(self, record):
    shown = {}
    if 'score' in record:
      shown['score'] = f'{record["score"]:.3f}'
    if 'depth' in record:
      shown['depth'] = f'{record["depth"]:g}'
    if 'gate_weight' in record:
      shown['gate'] = f'{record["gate_weight"]:.2f}'
    if self._bar is not None:
      self._bar.set_postfix(shown, refresh=False)
      self._shown = self._bar.postfix
      self._bar.update()

  def compiling(self, what):
    if self._bar is not None:
      text = f'compiling for {what}' if what else self._shown
      self._bar.set_postfix_str(text, refresh=bool(what))

  def derived(self, done, total):
    if self._pass is None:
      if done == total:
        return
      import tqdm

      # Quick passes end before the delay, and show nothing.
      self._pass = tqdm.tqdm(
        total=total,
        desc='columns  ',
        unit='block',
        dynamic_ncols=True,
        leave=False,
        delay=2,
      )
    self._pass.update(done - self._pass.n)
    if done == total:
      self._pass.close()
      self._pass = None

  def close(self):
    for bar in (self._pass, self._bar):
      if bar is not None:
        bar.close()
    self._bar = self._pass = None


class Recorder(Silent):
  """Keeps the records of the rounds, for the depth curve of the summary."""

  def __init__(self):
    self.records: list[dict[str, Any]] = []

  def round(self, record):
    self.records.append(record)


class Writers(Silent):
  """metrics.jsonl and TensorBoard events of a workdir."""

  def __init__(self, metrics, board, stages: list[str]):
    self._metrics = metrics
    self._board = board
    self._stages = stages

  def round(self, record):
    if record['stage'] not in self._stages:
      return  # pre-training comes before the first checkpoint
    number = self._stages.index(record['stage'])
    values = {k: v for k, v in record.items() if k not in ('stage', 'round')}
    # `fedms status` finds the speed from when the lines were written.
    stamps = {'name': record['stage'], 'unix_seconds': time.time()}
    self._metrics.write(number, record['round'], stamps | values)
    if self._board is not None:
      self._board.write(number, record['round'], values)

  def close(self):
    self._metrics.close()
    if self._board is not None:
      self._board.close()
      self._board = None


class Signals(Silent):
  """Stops the run at SIGTERM (see `signals.py`)."""

  def __init__(self, request):
    self._request = request

  def stop_requested(self):
    return bool(self._request.requested())


class Observers(Silent):
  """Several observers as one."""

  def __init__(self, *observers: Silent):
    self._observers = list(observers)

  def add(self, observer: Silent) -> None:
    self._observers.append(observer)

  def stage(self, name, done, total):
    for observer in self._observers:
      observer.stage(name, done, total)

  def round(self, record):
    for observer in self._observers:
      observer.round(record)

  def derived(self, done, total):
    for observer in self._observers:
      observer.derived(done, total)

  def note(self, text):
    for observer in self._observers:
      observer.note(text)

  def compiling(self, what):
    for observer in self._observers:
      observer.compiling(what)

  def stop_requested(self):
    return any(o.stop_requested() for o in self._observers)

  def close(self):
    for observer in self._observers:
      observer.close()
