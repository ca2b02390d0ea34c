"""What a run writes for its readers: metrics and the summary.

Numbers are written as plain JSON; NaN and infinities, which JSON lacks,
become null.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
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
  the fields that end in `seconds`. rounds: how many lines it has.
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
    self.rounds = len(kept)
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
    self.rounds += 1

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


def write_summary(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
  """Writes summary.json, whole or not at all."""
  text = json.dumps(plain(summary), indent=2, allow_nan=False)
  files.write_atomic(pathlib.Path(path), text + '\n')
