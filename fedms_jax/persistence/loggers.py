"""Where the values of rounds go beside metrics.jsonl: loggers, by name.

All have one axis, the rounds of all stages from 0, and know a stage by its
name. What a run that is resumed writes again is equal, so that a round that a
logger has twice is no other one.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fedms_jax.persistence import files, writers

Values = Mapping[str, Any]


class Setting(NamedTuple):
  """What a logger is told of a run.

  root: its workdir. settings: flags that say something else than their
  defaults, the seed, and the method.
  """

  root: pathlib.Path
  settings: Mapping[str, bool | int | float | str]


class Logger(Protocol):
  """Takes the values of a run; made before anything is trained."""

  def begin(self, first: int | None) -> None:
    """Rounds follow. first: how many there are from an earlier start, all of
    which the checkpoint knows; None: the run starts afresh."""

  def write(self, stage: str, step: int, values: Values) -> None:
    """Of a round. step: rounds before it, over all stages."""

  def finish(self, step: int, summary: Values) -> None:
    """The run has come to its end. step: rounds that it had."""

  def close(self) -> None:
    """Nothing more comes, whether the run has ended or stopped."""


class Csv:
  """metrics.csv: what metrics.jsonl holds, as a table with a row a round.

  A table needs all names first, so it is made of the other file, every minute
  and at the end.
  """

  SECONDS = 60.0

  def __init__(self, setting: Setting):
    self._root = setting.root
    self._written = time.monotonic()

  def begin(self, first: int | None) -> None:
    """What metrics.jsonl keeps of an earlier start is kept here, too."""

  def write(self, stage: str, step: int, values: Values) -> None:
    del stage, step, values
    if time.monotonic() - self._written > self.SECONDS:
      self.close()

  def finish(self, step: int, summary: Values) -> None:
    """The rounds are all there is."""

  def close(self) -> None:
    self._written = time.monotonic()
    source = self._root / 'metrics.jsonl'
    if source.exists():
      text = table(writers.read_metrics(source))
      files.write_atomic(self._root / 'metrics.csv', text)


def table(records: Sequence[Values]) -> str:
  """Records as CSV, with a column for every name in the order in which they
  come; what a record lacks is an empty cell, what is no number or text is
  JSON."""
  names = dict.fromkeys(name for record in records for name in record)
  out = io.StringIO()
  to = csv.writer(out, lineterminator='\n')
  to.writerow(names)
  for record in records:
    to.writerow([_cell(record.get(name)) for name in names])
  return out.getvalue()


def _cell(value: Any) -> Any:
  return json.dumps(value) if isinstance(value, list | dict) else value


def numbers(values: Values) -> dict[str, float]:
  """The finite numbers among values; a truth is 1 or 0."""
  found = writers.plain(values).items()
  return {k: float(v) for k, v in found if isinstance(v, bool | int | float)}


def scores(summary: Values) -> dict[str, float]:
  """The scores that a run ends with, by model: 'mixture/own_mean'."""
  found = {}
  for model, entry in summary['models'].items():
    found |= {f'{model}/{k}': v for k, v in numbers(entry).items()}
  return found


def _tensorboard(setting: Setting) -> Logger:
  from fedms_jax.persistence import tensorboard  # lazy: not every run has it

  return tensorboard.TensorBoard(setting)


def _wandb(setting: Setting) -> Logger:
  from fedms_jax.persistence import trackers  # lazy: see above

  return trackers.Wandb(setting)


def _mlflow(setting: Setting) -> Logger:
  from fedms_jax.persistence import trackers  # lazy: see above

  return trackers.Mlflow(setting)


ALL: dict[str, Callable[[Setting], Logger]] = {
  'tensorboard': _tensorboard,
  'csv': Csv,
  'wandb': _wandb,
  'mlflow': _mlflow,
}
# The package that each needs beside those that are always there.
PACKAGES = {'tensorboard': 'tensorboardX', 'wandb': 'wandb', 'mlflow': 'mlflow'}


def check(names: Sequence[str]) -> None:
  """Raises `ValueError` for a logger whose package is not installed."""
  for name in names:
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
      raise ValueError(
        f'`loggers` has {name}, which needs the package {package}. pip install '
        f"'fedms_jax[{name}]', or leave it out."
      )
