"""Observers of a run: progress bars, metrics files, signals."""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

log = logging.getLogger('fedms_jax')


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
  """Tells by Python's `logging`, where no bar shows it, how the run goes on.

  A line when a stage begins and ends, when a round waits for its programs, and
  one of the newest round every `seconds` (0: never) and every `rounds` (0:
  never).
  """

  def __init__(
    self,
    seconds: float = 30.0,
    rounds: int = 0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._seconds, self._rounds, self._clock = seconds, rounds, clock
    self._stage, self._done, self._total = '', 0, 0
    # When and after how many rounds the stage was begun, and last told of.
    self._begun = self._told = (0.0, 0)

  def stage(self, name, done, total):
    self._stage, self._done, self._total = name, done, total
    self._begun = self._told = (self._clock(), done)
    after = f', after {done} of them' if done else ''
    log.info('%s: %d rounds%s', name, total, after)

  def round(self, record):
    self._done += 1
    now, (when, before) = self._clock(), self._told
    due = self._done == self._total
    due |= bool(self._seconds) and now - when >= self._seconds
    due |= bool(self._rounds) and self._done - before >= self._rounds
    if due:
      self._told = (now, self._done)
      log.info('%s', self._line(record, now))

  def _line(self, record, now: float) -> str:
    """Where the stage is, how good, how fast, and how long it still takes."""
    parts = [f'{self._stage}: round {self._done} of {self._total}']
    if record.get('score') is not None:
      parts.append(f'score {record["score"]:.4f}')
    if record.get('depth') is not None:
      parts.append(f'depth {record["depth"]:g}')
    when, before = self._begun
    took = now - when
    if took > 0:
      rate = (self._done - before) / took
      left = datetime.timedelta(
        seconds=round((self._total - self._done) / rate)
      )
      parts += [f'{rate:.3g} rounds a second', f'{left} left in the stage']
    return ', '.join(parts)

  def compiling(self, what):
    if what:
      log.info('%s: compiling for %s', self._stage, what)


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
  """metrics.jsonl of a workdir, and loggers beside it.

  loggers: each with `write(stage, step, values)` and `close()`, where step
  counts the rounds of all stages.
  """

  def __init__(self, metrics, loggers: Sequence[Any], stages: list[str]):
    self._metrics = metrics
    self._loggers = list(loggers)
    self._stages = stages

  def round(self, record):
    if record['stage'] not in self._stages:
      return  # pre-training comes before the first checkpoint
    number = self._stages.index(record['stage'])
    values = {k: v for k, v in record.items() if k not in ('stage', 'round')}
    # `fedms status` finds the speed from when the lines were written.
    stamps = {'name': record['stage'], 'unix_seconds': time.time()}
    step = self._metrics.rounds
    self._metrics.write(number, record['round'], stamps | values)
    for logger in self._loggers:
      logger.write(record['stage'], step, values)

  def sync(self) -> None:
    """Returns when all lines would survive a loss of power. Any thread."""
    self._metrics.sync()

  def finish(self, summary: dict[str, Any]) -> None:
    """Gives the loggers what the run has come to."""
    for logger in self._loggers:
      logger.finish(self._metrics.rounds, summary)

  def close(self):
    """Closes all, also where one cannot be; idempotent."""
    loggers, self._loggers = self._loggers, []
    with contextlib.ExitStack() as stack:
      stack.callback(self._metrics.close)
      for logger in loggers:
        stack.callback(logger.close)


class Each(Silent):
  """Calls a function with the record of each round."""

  def __init__(self, function: Callable[[dict[str, Any]], Any]):
    self._function = function

  def round(self, record):
    self._function(dict(record))


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
