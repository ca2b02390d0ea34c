"""What a report is made of: finished runs, and how they belong together.

Read from folders alone, so that a report can be made anywhere, and of runs of
earlier versions.
"""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedms_jax.persistence import files, workdir, writers

SWEEP = 'sweep.json'
AUDITS = 'audit.json'  # in a workdir, by what was audited
# Flags that say nothing of what a run computes.
_SILENT = ('progress', 'loggers', 'tensorboard')


class Run(NamedTuple):
  """A finished run.

  flags: values as text. records: lines of metrics.jsonl. stages: 'name',
  'rounds' and 'served' of each, [] for a run of an earlier version.
  partition: 'classes', 'clients', 'dealt' (the name of the partitioner), and
  rows [n, C] of 'train' and 'test'.
  audits: what audits have found, by kind.
  """

  root: pathlib.Path
  flags: dict[str, str]
  summary: dict[str, Any]
  records: list[dict[str, Any]]
  stages: list[dict[str, Any]]
  partition: dict[str, Any] | None
  audits: Mapping[str, Any] = {}

  @property
  def served(self) -> str:
    """The model that users are served with."""
    if self.stages:
      return self.stages[-1]['served']
    models = self.summary['models']
    return 'mixture' if 'mixture' in models else 'global'

  @property
  def dealt(self) -> str:
    """How rows were dealt to clients; '' if no file of the run says it."""
    told = (self.partition or {}).get('dealt')
    return told or self.flags.get('partition.name', '')

  @property
  def scores(self) -> dict[str, float | None]:
    """Of the served model."""
    return self.summary['models'][self.served]

  @property
  def score(self) -> float:
    """What runs are ranked by: clients' own test rows, the served model.

    Raises:
      ValueError: the run has none, because it diverged or has no test rows.
    """
    found = self.scores['own_mean']
    if found is None:
      raise ValueError(f"{self.root} has no score on clients' own test rows.")
    return found

  @property
  def seed(self) -> int:
    return int(self.flags['seed'])

  def per_client(self, name: str) -> list[float | None]:
    """A value of each evaluated client, [] if it was not measured."""
    return self.summary['per_client'].get(name, [])

  def clients(self, count: int) -> list[int]:
    """Numbers of the evaluated clients, of whom there are so many."""
    return self.summary.get('client_ids') or list(range(count))


class Row(NamedTuple):
  """Runs that differ by their seed alone. note: one line on it. group: the
  family that it belongs to, if any."""

  label: str
  runs: list[Run]
  note: str = ''
  group: str = ''


class Comparison(NamedTuple):
  """Rows to compare. reference: label of the row that costs are relative to,
  '' for none. missing: why there is no result, by label. search: scores of
  learning rates, by label. notes: lines on how it was made. search_costs: what
  the search has spent, 'bytes', 'flops' and 'seconds', by label."""

  title: str
  rows: list[Row]
  reference: str = ''
  missing: Mapping[str, str] = {}
  search: Mapping[str, Mapping[str, float | None]] = {}
  notes: Sequence[str] = ()
  search_costs: Mapping[str, Mapping[str, float]] = {}


def read(path: str | pathlib.Path) -> Run:
  """The run of a folder.

  Raises:
    ValueError: there is none, or it is not finished.
  """
  folder = workdir.Workdir.look(path)
  summary = folder.result()
  if summary is None:
    raise ValueError(
      f'`workdir`={path} holds a run that is not finished: it has no whole '
      f'{folder.summary.name}. See `fedms status`; go on with `resume`.'
    )

  def loaded(file: pathlib.Path, default):
    return files.read_json(file) if file.exists() else default

  records = (
    writers.read_metrics(folder.metrics) if folder.metrics.exists() else []
  )
  return Run(
    folder.root,
    writers.parse_flags(folder.flags.read_text(encoding='utf-8')),
    summary,
    records,
    loaded(folder.stages, []),
    loaded(folder.partition, None),
    loaded(folder.root / AUDITS, {}),
  )


def comparison(root: pathlib.Path) -> Comparison:
  """What lies in the folder of a sweep or of a benchmark.

  Its sweep.json has 'points': flags of each, by folder. A benchmark adds
  'benchmark': 'labels' of the points and more, see `Comparison`; without it, a
  row is made of the points that differ by their seed alone.

  Raises:
    ValueError: nothing in it is finished and has a score.
  """
  record = files.read_json(root / SWEEP)
  told = record.get('benchmark', {})
  labels = told.get('labels', {})
  found: dict[str, list[Run]] = {}
  missing = dict(told.get('missing', {}))
  for folder, point in record['points'].items():
    label = labels.get(folder) or _label(point)
    if workdir.Workdir(root / folder, True, None).result() is None:
      missing.setdefault(label, f'{folder} is not finished')
      continue
    run = read(root / folder)
    if run.scores['own_mean'] is None:
      missing.setdefault(label, f"{folder} has no score on clients' test rows")
    else:
      found.setdefault(label, []).append(run)
  if not found:
    raise ValueError(
      f'{root} holds no finished run with a score; nothing to compare.'
    )
  notes, groups = told.get('notes', {}), told.get('groups', {})
  return Comparison(
    told.get('title', root.name),
    [
      Row(
        label,
        sorted(runs, key=lambda r: r.seed),
        notes.get(label, ''),
        groups.get(label, ''),
      )
      for label, runs in found.items()
    ],
    told.get('reference', ''),
    missing,
    told.get('search', {}),
    told.get('rules', ()),
    told.get('search_costs', {}),
  )


def _label(point: Mapping[str, str]) -> str:
  pairs = [f'{k}={v}' for k, v in point.items() if k != 'seed']
  return ', '.join(pairs) or 'all'


def _flag(name: str, value: str) -> str:
  """A word of a command line, of a line of flags.txt."""
  return f'--{name}={value}'


def command(runs: Sequence[Run], defaults: Mapping[str, str]) -> str:
  """A line for the shell that repeats runs that differ by their seed alone.

  defaults: values of all flags that need not be said.
  """
  first = runs[0].flags
  words = ['fedms']
  for name, value in first.items():
    if name != 'seed' and name not in _SILENT and defaults.get(name) != value:
      words.append(shlex.quote(_flag(name, value)))
  if len(runs) == 1:
    return ' '.join([*words, _flag('seed', first['seed'])])
  seeds = ' '.join(run.flags['seed'] for run in runs)
  line = ' '.join([*words, _flag('seed', '$s'), _flag('workdir', 'runs/$s')])
  return f'for s in {seeds}; do {line}; done'
