"""A benchmark: rows of runs that differ by their seed, in one folder.

Every run is a point of a sweep with a workdir of its own, so a benchmark that
was killed goes on where it was, `fedms launch sweep --collect` reads its
results, and `fedms report` makes its page. The runs share one process, see
`shared_runs.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shlex
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedms_jax.cluster import signals
from fedms_jax.launch import command, table
from fedms_jax.persistence import writers
from fedms_jax.persistence.files import write_atomic
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.report import page, runs, statistics
from fedms_jax.shell import arguments
from fedms_jax.shell import flags as fedms_flags
from fedms_jax.shell.commands import report as report_command
from fedms_jax.shell.config import Config

Flags = dict[str, str]  # name -> value
_AUDITED = ('epsilon_accounted', 'epsilon_lower_bound', 'epsilon_estimate',
            'auroc')  # fmt: skip
SEARCH = 'search/'  # where the runs of a search lie
RULES = 'benchmark.json'


class Axis(NamedTuple):
  """A flag of a row alone that a search tries, beside the learning rate; the
  row's own flags have one of the values."""

  flag: str
  values: tuple[str, ...]


class Entry(NamedTuple):
  """A row: what it is called, the flags that make it, and a line on it.

  group: what rows it belongs to. alone: it does not look at the learning rate,
  and its axis, if any, is searched in place of that. once: its clients are
  asked once, so that its rounds are not cut or stretched.
  """

  label: str
  flags: Flags
  note: str = ''
  axis: Axis | None = None
  group: str = ''
  alone: bool = False
  once: bool = False


class Job(NamedTuple):
  """A run. folder: below the benchmark's. weight: how long it is, relative to
  a whole run."""

  label: str
  folder: str
  flags: Flags
  weight: float = 1.0


class Stopped(Exception):
  """A signal asked to stop; what there is, is saved."""


class Ledger:
  """How long runs took, and so how long those that are left will take."""

  def __init__(self):
    self._spent: dict[str, list[float]] = {}

  def note(self, job: Job, seconds: float) -> None:
    self._spent.setdefault(job.label, []).append(seconds / job.weight)

  def left(self, jobs: Sequence[Job]) -> float | None:
    """Seconds; None if nothing is known, or left."""
    known = [s for spent in self._spent.values() for s in spent]
    if not (known and jobs):
      return None

    def each(job: Job) -> float:
      mine = self._spent.get(job.label, known)
      return sum(mine) / len(mine) * job.weight

    return sum(map(each, jobs))


class Contest:
  """Runs jobs in a folder and keeps the record of them.

  run: (config, log file) -> exit code; it goes on with a run that was begun.
  base: the words of the flags that all runs share. after: (config, folder) of
  each run that is finished, also of one that had been; None: nothing. tries:
  the folder of another benchmark whose search this one shares.
  """

  def __init__(
    self,
    root: pathlib.Path,
    base: Sequence[str],
    run: Callable[[Config, pathlib.Path], int],
    after: Callable[[Config, pathlib.Path], None] | None = None,
    tries: pathlib.Path | None = None,
  ):
    self.root = root
    self.tries = tries or root
    self.base = list(base)
    self.planned: list[Job] = []  # not done yet, for the estimate
    self.missing: dict[str, str] = {}
    self.crashed = False
    self.ledger = Ledger()
    self._run = run
    self._after = after

  def config(self, job: Job) -> Config:
    """The config of a job; refuses flags that `fedms` does not take."""
    words = [*self.base, *_words(job.flags), '--noprogress', '--notensorboard']
    folder = str(self.place(job))
    # Set after the check: a job may be asked about that will have other rates.
    return dataclasses.replace(
      command.check(words), workdir=folder, resume=True
    )

  def place(self, job: Job) -> pathlib.Path:
    """The folder of a job's run."""
    root = self.tries if job.folder.startswith(SEARCH) else self.root
    return root / job.folder

  def do(self, job: Job) -> runs.Run | None:
    """The finished run of a job, which is run unless it is finished; None if
    that is not possible, with the reason in `missing`."""
    folder, name = self.place(job), job.folder
    self.planned = [other for other in self.planned if other.folder != name]
    if Workdir(folder, True, None).result() is None:
      start = time.monotonic()
      config = self.config(job)
      problem = self._attempt(config, folder)
      if problem:
        self.missing.setdefault(job.label, problem)
        print(f'{name}: {problem}', flush=True)
        return None
      self.ledger.note(job, time.monotonic() - start)
      name += f', {time.monotonic() - start:.0f} s'
    if self._after is not None:
      self._after(self.config(job), folder)
    found = runs.read(folder)
    score = found.scores['own_mean']
    told = 'no score' if score is None else f'{100 * score:.1f} %'
    left = self.ledger.left(self.planned)
    rest = '' if left is None else f'; left: {_duration(left)}'
    print(f'{name}: {told}{rest}', flush=True)
    return found

  def _attempt(self, config: Config, folder: pathlib.Path) -> str:
    """Runs a config; gives what went wrong, or ''."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'log.txt'
    try:
      code = self._run(config, log)
    except ValueError as error:  # flags that do not fit, a non-finite loss
      return arguments.in_flags(error)
    except Exception as error:  # a night of runs shall not end with one of them
      with open(log, 'a') as file:
        traceback.print_exc(file=file)
      self.crashed = True
      return f'crashed: {type(error).__name__}: {error} (see {log})'
    if code in (signals.EXIT_SAVED, 143):
      raise Stopped
    return f'ended with code {code} (see {log})' if code else ''

  def write(self, points: Sequence[Job], told: dict[str, Any]) -> None:
    """Writes the record, the table and the page of the points."""
    content = {
      'flags': self.base,
      'points': {job.folder: self._point(job) for job in points},
      'benchmark': told
      | {
        'labels': {job.folder: job.label for job in points},
        'missing': self.missing,
      },
    }
    self.root.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2)
    write_atomic(self.root / runs.SWEEP, text + '\n')
    found, _ = table.rows(self.root, content['points'])
    if not found:
      return
    by_folder = {str(self.root / job.folder): job for job in points}
    rows = []
    for row in found:
      job = by_folder[row['workdir']]
      run = runs.read(row['workdir'])
      rows.append(
        {'row': job.label, 'seed': run.seed, 'served': run.served}
        | {f'served.{k}': v for k, v in run.scores.items()}
        | {'bytes': statistics.volume(run)}
        | {k: run.summary[k] for k in ('run_seconds', 'compile_seconds')}
        | _promised(run)
        | row
      )
    table.write(self.root / 'results.csv', rows)
    table.write(self.root / 'results.parquet', rows)
    page.write(self.root / 'report.html', report_command.text(self.root))
    page.write(self.root / 'table.md', report_command.table(self.root))

  def _point(self, job: Job) -> Flags:
    """The job's flags with their values as flags.txt has them."""
    text = writers.parse_flags(fedms_flags.to_text(self.config(job)))
    return {name: text[name] for name in job.flags}


def _promised(run: runs.Run) -> dict[str, Any]:
  """What of a run's privacy is a number: as accounted, and as audited."""
  found = {'epsilon': run.summary.get('privacy', {}).get('epsilon')}
  told = run.audits.get('canaries', {})
  found |= {f'audit.{k}': told[k] for k in _AUDITED if k in told}
  return {k: v for k, v in found.items() if v is not None}


def in_process(shared) -> Callable[[Config, pathlib.Path], int]:
  """Runs a config here, with what runs share; its words go to the log."""

  def run(config: Config, log: pathlib.Path) -> int:
    from fedms_jax.shell import program_cache
    from fedms_jax.shell import run as simulation_command

    with open(log, 'a') as file, contextlib.redirect_stdout(file):
      program_cache.begin()
      shared.prepare(config)
      return simulation_command.run(config, shared)

  return run


def settle(root: pathlib.Path, base: Sequence[str], told: dict) -> None:
  """Refuses the folder of another benchmark.

  Raises:
    ValueError: it was made with other flags or by other rules.
  """
  content = {'flags': list(base), **told}
  agree(root, content)
  root.mkdir(parents=True, exist_ok=True)
  text = json.dumps(content, indent=2)
  write_atomic(root / RULES, text + '\n')


def agree(root: pathlib.Path, content: dict) -> None:
  """Raises `ValueError` if the benchmark in a folder, if any, was made with
  other values of what `content` names."""
  path = root / RULES
  if not path.exists():
    return
  old = json.loads(path.read_text(encoding='utf-8'))
  for name, value in content.items():
    if old.get(name) != value:
      raise ValueError(
        f'{root} holds a benchmark with other {name}:\n'
        f'  the folder: {_shown(old.get(name))}\n  now: {_shown(value)}\n'
        'Choose another folder, or give the same.'
      )


def _shown(value) -> str:
  return shlex.join(value) if isinstance(value, list) else str(value)


def _words(flags: Flags) -> list[str]:
  return [f'--{name}={value}' for name, value in flags.items()]


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f'about {seconds:.0f} s'
  minutes = seconds / 60
  return f'about {minutes:.0f} min' if minutes < 90 else (
    f'about {minutes / 60:.1f} h'
  )  # fmt: skip
