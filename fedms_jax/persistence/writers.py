"""What a run writes for its readers: metrics, events, the summary.

Numbers are written as plain JSON; NaN and infinities, which JSON lacks,
become null.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedms_jax.persistence import workdir

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
  """metrics.jsonl: one line per stage and round, on the disk at once.

  Write the line of a round before the checkpoint of that round is saved:
  then a resumed file is that of an uninterrupted run, but for the fields
  that end in `seconds`.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    resume_at: tuple[int, int] | None = None,
  ):
    """Opens the file and drops what the checkpoint does not know of.

    Args:
      path: the file; made if absent.
      resume_at: stage and round of the checkpoint that the run goes on from;
        later lines are cut off. None: the run starts afresh.

    Raises:
      ValueError: a line before the last one is damaged.
    """
    path = pathlib.Path(path)
    kept = []
    if resume_at is not None and path.exists():
      lines = _lines(path)
      kept = [raw for raw, at in lines if at is not None and at <= resume_at]
    self._file = open(path, 'ab')
    self._file.truncate(sum(map(len, kept)))

  def write(self, stage: int, round: int, values: Mapping[str, Any]) -> None:
    """Appends a line: stage, round, then `values`."""
    line = json.dumps(
      {'stage': int(stage), 'round': int(round), **plain(values)},
      allow_nan=False,
    )
    self._file.write(line.encode() + b'\n')
    self._file.flush()

  def close(self) -> None:
    self._file.close()


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
  """TensorBoard events: the scalars of each stage in a folder of its own."""

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
      import tensorboardX  # lazy: not every run needs it
    except ImportError as e:
      raise ValueError(
        f'TensorBoard events need the package tensorboardX ({e}). Install it, '
        'or write none: `tensorboard`=false.'
      ) from e
    self._new = tensorboardX.SummaryWriter
    self._folder = pathlib.Path(folder)
    self._resume_at = resume_at
    self._writers = {}

  def write(self, stage: int, round: int, values: Mapping[str, Any]) -> None:
    """Adds the numbers among `values`."""
    if stage not in self._writers:
      self._writers[stage] = self._new(
        str(self._folder / f'stage{stage}'),
        purge_step=self._first(stage),
        flush_secs=10,
      )
    for name, value in plain(values).items():
      if isinstance(value, bool | int | float):
        self._writers[stage].add_scalar(name, value, round)

  def _first(self, stage: int) -> int | None:
    """The first round of the stage whose earlier events do not count."""
    if self._resume_at is None or stage < self._resume_at[0]:
      return None
    return self._resume_at[1] + 1 if stage == self._resume_at[0] else 0

  def close(self) -> None:
    for writer in self._writers.values():
      writer.close()


def write_summary(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
  """Writes summary.json, whole or not at all."""
  text = json.dumps(plain(summary), indent=2, allow_nan=False)
  workdir.write_atomic(pathlib.Path(path), text + '\n')
