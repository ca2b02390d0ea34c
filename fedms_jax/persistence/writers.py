"""What a run writes for its readers: metrics, events, the summary.

Numbers are written as plain JSON; NaN and infinities, which JSON lacks,
become null.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedms_jax.persistence import files

CLOCK_SUFFIX = 'seconds'


def plain(value: Any) -> Any:
  """`value` in the types of JSON: arrays to lists, non-finite to None."""
  if value is None or isinstance(value, bool | int | str):
    return value
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  array = np.asarray(value)
  if array.dtype.kind not in 'biufV':  # V: bfloat16 and its like
    raise TypeError(f'{type(value).__name__} {value!r} is no JSON value.')
  return plain(array.tolist())


def timeless(line: Mapping[str, Any]) -> dict[str, Any]:
  """A line without its wall-clock fields, those that end in `seconds`."""
  return {k: v for k, v in line.items() if not k.endswith(CLOCK_SUFFIX)}


class MetricsFile:
  """metrics.jsonl: one line per stage and round, seen by readers at once.

  Write the line of a round, and call `sync`, before the checkpoint of that
  round is saved: then a resumed file is that of an uninterrupted run, but for
  the fields that end in `seconds`.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    resume_at: tuple[int, int] | None = None,
    rounds: Sequence[int] = (),
  ):
    """Opens the file and drops what the checkpoint does not know of.

    Args:
      path: the file; made if absent.
      resume_at: stage and round of the checkpoint that the run goes on from;
        later lines are cut off. None: the run starts afresh.
      rounds: of the stages before that one, all of whose lines are there.

    Raises:
      ValueError: a line before the last one is damaged, or lines of rounds
        that the checkpoint has seen are not there.
    """
    path = pathlib.Path(path)
    kept = []
    if resume_at is not None:
      lines = _lines(path) if path.exists() else []
      kept = [(raw, at) for raw, at in lines if at and at <= resume_at]
      _check_complete(path, [at for _, at in kept], resume_at, rounds)
    self._file = open(path, 'ab')
    self._file.truncate(sum(len(raw) for raw, _ in kept))

  def write(self, stage: int, round: int, values: Mapping[str, Any]) -> None:
    """Appends a line: stage, round, then `values`."""
    line = json.dumps(
      {'stage': int(stage), 'round': int(round), **plain(values)},
      allow_nan=False,
    )
    self._file.write(line.encode() + b'\n')
    self._file.flush()

  def sync(self) -> None:
    """Returns when all lines would survive a loss of power. Any thread."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    self._file.close()


def _check_complete(
  path: pathlib.Path,
  found: list[tuple[int, int]],
  last: tuple[int, int],
  rounds: Sequence[int],
) -> None:
  """Raises `ValueError` unless there is one line for every round up to the
  last one: the summary of the run is made of them."""
  stage, round = last
  each = [*rounds[:stage], round + 1]
  wanted = [(s, t) for s, count in enumerate(each) for t in range(count)]
  if found == wanted:
    return
  missing = [at for at in wanted if at not in set(found)]
  what = f'lacks {len(missing)} of its {len(wanted)} lines'
  if missing:
    what += f', the first of them stage {missing[0][0]}, round {missing[0][1]}'
  else:
    what = 'has lines twice or in another order'
  raise ValueError(
    f'{path} {what}, up to the checkpoint that the run goes on from. Bring '
    'the file back, remove the checkpoints that are newer than its lines, or '
    'start the run again in another folder.'
  )


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """All whole lines of a metrics.jsonl.

  Raises:
    ValueError: a line before the last one is damaged.
  """
  lines = _lines(pathlib.Path(path))
  return [json.loads(raw) for raw, at in lines if at is not None]


def parse_flags(text: str) -> dict[str, str]:
  """The values in the text of a flags.txt, by name."""
  values = {}
  for line in text.splitlines():
    name, _, value = line.removeprefix('--').partition('=')
    if name:
      values[name] = value
  return values


def _lines(path: pathlib.Path) -> list[tuple[bytes, tuple[int, int] | None]]:
  """The lines, each with its (stage, round), None for a half-written last."""
  lines = []
  raws = path.read_bytes().splitlines(keepends=True)
  for number, raw in enumerate(raws, start=1):
    at = None
    if raw.endswith(b'\n'):
      try:
        line = json.loads(raw)
        at = line['stage'], line['round']
      except (ValueError, KeyError, TypeError):
        pass
    if at is None and number < len(raws):
      raise ValueError(
        f'{path}, line {number}, is damaged: {raw[:60]!r}. Remove that line, '
        'or start the run again in another folder.'
      )
    lines.append((raw, at))
  return lines


class TensorBoard:
  """TensorBoard events: the scalars of each stage in a folder of its own.

  They are written by the thread that calls, so that an error of the disk is
  raised where it happens. (tensorboardX's own writer has a thread, which dies
  of it and leaves the run waiting.)
  """

  FLUSH_SECONDS = 10.0

  def __init__(
    self, folder: str | os.PathLike, resume_at: tuple[int, int] | None = None
  ):
    """Writes below `folder`.

    Args:
      folder: where the events of all starts of the run lie.
      resume_at: stage and round of the checkpoint that the run goes on from;
        TensorBoard hides what an earlier start wrote after it. None: the run
        starts afresh.
    """
    try:
      # Lazy: not every run needs it.
      from tensorboardX import event_file_writer, summary
      from tensorboardX.proto import event_pb2
    except ImportError as e:
      raise ValueError(
        f'TensorBoard events need the package tensorboardX ({e}). Install it, '
        'or write none: `tensorboard`=false.'
      ) from e
    self._scalar = summary.scalar
    self._events: Any = event_pb2  # made by protobuf, without types
    self._new = event_file_writer.EventsWriter
    self._folder = pathlib.Path(folder)
    self._resume_at = resume_at
    self._writers = {}
    self._flushed = time.monotonic()

  def write(self, stage: int, round: int, values: Mapping[str, Any]) -> None:
    """Adds the numbers among `values`."""
    if stage not in self._writers:
      self._open(stage)
    writer = self._writers[stage]
    for name, value in plain(values).items():
      if isinstance(value, bool | int | float):
        summary = self._scalar(name, value)
        writer.write_event(self._event(round, summary=summary))
    if time.monotonic() - self._flushed > self.FLUSH_SECONDS:
      self._flushed = time.monotonic()
      writer.flush()

  def _open(self, stage: int) -> None:
    folder = self._folder / f'stage{stage}'
    folder.mkdir(parents=True, exist_ok=True)
    # Two starts within a second would else share a file.
    own = f'.{os.getpid()}'
    writer = self._writers[stage] = self._new(str(folder / 'events'), own)
    first = self._first(stage)
    if first is not None:
      start = self._events.SessionLog(status=self._events.SessionLog.START)
      writer.write_event(self._event(first, session_log=start))

  def _event(self, step: int, **what):
    return self._events.Event(wall_time=time.time(), step=step, **what)

  def _first(self, stage: int) -> int | None:
    """The first round of the stage whose earlier events do not count."""
    if self._resume_at is None or stage < self._resume_at[0]:
      return None
    return self._resume_at[1] + 1 if stage == self._resume_at[0] else 0

  def close(self) -> None:
    with contextlib.ExitStack() as stack:  # one that fails keeps none open
      for writer in self._writers.values():
        stack.callback(writer.close)


def write_summary(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
  """Writes summary.json, whole or not at all."""
  text = json.dumps(plain(summary), indent=2, allow_nan=False)
  files.write_atomic(pathlib.Path(path), text + '\n')
