"""The order of a benchmark: search, first seed, further seeds, report."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks import contest, shared_runs, tuning
from benchmarks.contest import Contest, Entry, Flags, Job
from fedms_jax.cluster.signals import EXIT_SAVED
from fedms_jax.launch import command, grid
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.report import statistics

QUICK = ['--flagfile=launch/presets/smoke.flags']


class Rules(NamedTuple):
  """How all rows of a benchmark are run. seeds, search: as text; share: part
  of the rounds that a try of the search has. reference: label of a row."""

  seeds: list[str]
  search: list[str]
  share: float
  budget: str
  reference: str

  def lasting(self) -> dict:
    """What must stay the same when a benchmark goes on; seeds may be added,
    unless the first one has settled something."""
    found = {'search': self.search, 'budget': self.budget}
    if self.search:
      found['search_share'] = self.share
    if self.budget == 'bytes':
      found['reference'] = self.reference
    if self.search or self.budget == 'bytes':
      found['first seed'] = self.seeds[0]
    return found

  def words(self) -> list[str]:
    """What a reader of the report has to know."""
    lines = [
      'All rows of a seed have the same data, partition, cohorts and '
      'pre-trained model, and the same evaluation.',
      'Each row has as many rounds as stage 1 and stage 2 have together.'
      if self.budget == 'passes'
      else 'Each row has as many rounds as it takes to send and receive the '
      f'bytes of {self.reference} on the first seed, within '
      f'{100 * tuning.CLOSE:g} % where that is possible.',
    ]
    if self.search:
      lines.append(
        f'Learning rates {", ".join(self.search)} were tried on seed '
        f'{self.seeds[0]} in runs of {100 * self.share:g} % of the rounds. '
        'The rate of the personal part keeps its ratio to it; rates of gates '
        'and of methods alone are not searched.'
      )
    return lines


def parser(
  module: str, description: str, search: str = ''
) -> argparse.ArgumentParser:
  """The options that these benchmarks have in common. search: the learning
  rates that are tried if nobody says which."""
  options = command.parser(f'benchmarks.{module}', description)
  add = options.add_argument
  add(
    '--out',
    default=f'runs/{module}',
    help='folder of the results; with the same one, a benchmark goes on',
  )
  add('--seeds', default='', help='0,1,7 (empty: 0..2, quick: 0..1)')
  proposed = f'; auto: {search}, and none with --quick' if search else ''
  options.set_defaults(proposed=search)
  add(
    '--search',
    default='auto' if search else '',
    help='learning rates to try on validation rows of the first seed, such as '
    f'3e-4,1e-3,3e-3; empty: none{proposed}',
  )
  add(
    '--search_share',
    type=float,
    default=0.3,
    help='part of the rounds that a try of a learning rate has',
  )
  add(
    '--budget',
    default='passes',
    choices=('passes', 'bytes'),
    help='what is equal for all rows: passes over the data, that is rounds; '
    'or bytes sent and received, those of the reference',
  )
  add('--reference', default='', help='row that costs are relative to')
  add(
    '--quick',
    action='store_true',
    help='few rows, small model, few rounds: its numbers mean nothing',
  )
  return options


def rules(options: argparse.Namespace) -> Rules:
  """The rules of the options.

  Raises:
    ValueError: they make no sense.
  """
  text = options.search
  if text == 'auto':
    text = '' if options.quick else options.proposed
  search = [rate.strip() for rate in text.split(',') if rate.strip()]
  for rate in search:
    try:
      positive = float(rate) > 0
    except ValueError:
      positive = False
    if not positive:
      raise ValueError(
        f'--search={options.search} has {rate!r}, which is no learning rate; '
        'write --search=3e-4,1e-3.'
      )
  if not 0 < options.search_share <= 1:
    raise ValueError(
      f'--search_share={options.search_share} is not allowed; allowed: above '
      '0 to 1.'
    )
  seeds = options.seeds or ('0..1' if options.quick else '0..2')
  seeds = grid.axis(f'seed={seeds}')[1]
  return Rules(
    seeds, search, options.search_share, options.budget, options.reference
  )


def chosen(
  names: str, known: dict[str, Entry], flag: str, default: Sequence[str]
) -> list[Entry]:
  """The entries that a flag names, in its order; empty: the default."""
  wanted = [n.strip() for n in names.split(',') if n.strip()] or list(default)
  for name in wanted:
    if name not in known:
      raise ValueError(
        f'--{flag} has {name!r}, which is none. Allowed: {", ".join(known)}.'
      )
  return [known[name] for name in dict.fromkeys(wanted)]


def run(
  options: argparse.Namespace,
  base: Sequence[str],
  entries: Sequence[Entry],
  title: str,
  runner: Callable | None = None,
  after: Callable | None = None,
) -> int:
  """Runs a benchmark to its end; gives the exit code: 1 if a run crashed, 75
  if a signal stopped it.

  base: words of the flags that all rows share. runner, after: see `Contest`.
  """
  told, root = rules(options), pathlib.Path(options.out).absolute()
  labels = [entry.label for entry in entries]
  if told.reference and told.reference not in labels:
    raise ValueError(
      f'--reference={told.reference} is no row of it; rows: '
      f'{", ".join(labels)}.'
    )
  if told.budget == 'bytes' and not told.reference:
    raise ValueError('--budget=bytes needs --reference=<row>.')
  if runner is None:
    shared = shared_runs.SharedRuns(root / 'pretrained')
    runner = contest.in_process(shared)
  game = Contest(root, base, runner, after)
  for entry in entries:
    game.config(Job(entry.label, 'check', entry.flags))
  contest.settle(root, base, told.lasting())
  field = Championship(game, entries, told, title)
  try:
    field.play()
  except contest.Stopped:
    field.write()
    print(f'stopped; the same command goes on with {root}')
    return EXIT_SAVED
  field.write()
  if (root / 'report.html').exists():
    print(f'{root}/report.html, {root}/results.csv')
  return 1 if game.crashed else 0


class Championship:
  """The rows of a benchmark under its rules."""

  def __init__(
    self, game: Contest, entries: Sequence[Entry], rules: Rules, title: str
  ):
    self._game = game
    self._entries = entries
    self._rules = rules
    self._title = title
    self._points: list[Job] = []
    self._search: dict[str, dict[str, float | None]] = {}

  def play(self) -> None:
    """All runs that are not finished yet."""
    first, *others = self._rules.seeds
    tries = {e.label: self._tries(e) for e in self._entries}
    self._game.planned = [job for jobs in tries.values() for job in jobs]
    self._game.planned += [
      self._job(entry, seed, {})
      for seed in self._rules.seeds
      for entry in self._entries
    ]
    rates = {e.label: self._rate(e, tries[e.label]) for e in self._entries}
    jobs = self._first_seed(
      [self._job(entry, first, rates[entry.label]) for entry in self._entries]
    )
    for seed in others:
      self._seed([_reseeded(job, first, seed) for job in jobs])

  def write(self) -> None:
    """Record, table and page of what there is."""
    told = {
      'title': self._title,
      'reference': self._rules.reference,
      'search': self._search,
      'notes': {entry.label: entry.note for entry in self._entries},
      'rules': self._rules.words() + self._words(),
    }
    self._game.write(self._points, told)

  def _words(self) -> list[str]:
    """What of the search is not the same for all rows."""
    further = [
      f'--{e.axis.flag} of {e.label} ({", ".join(e.axis.values)})'
      for e in self._entries
      if e.axis
    ]
    if not (further and self._rules.search):
      return []
    return [
      f'At the best of these rates, in the same way: {"; ".join(further)}.'
    ]

  def _tries(self, entry: Entry) -> list[Job]:
    return tuning.tries(
      self._game,
      entry,
      self._rules.search,
      self._rules.share,
      self._rules.seeds[0],
    )

  def _rate(self, entry: Entry, tries: Sequence[Job]) -> Flags:
    """The flags of the learning rate that is best for a row."""
    if not tries:
      return {}
    scores = tuning.search(self._game, tries, self._rules.search)
    self._search[entry.label] = scores
    found = tuning.best(scores)
    if found is None:
      return {}
    config = self._game.config(self._job(entry, self._rules.seeds[0], {}))
    return tuning.rates(config, found) | self._further(entry, found)

  def _further(self, entry: Entry, rate: str) -> Flags:
    """The value that is best along the row's own axis, at its best rate."""
    if entry.axis is None:
      return {}
    told, (flag, values) = self._rules, entry.axis
    jobs = tuning.further(self._game, entry, rate, told.share, told.seeds[0])
    scores = tuning.search(self._game, jobs, values)
    self._search[f'{entry.label}: {flag}'] = scores
    best = tuning.best(scores)
    return {} if best is None else {flag: best}

  def _job(self, entry: Entry, seed: str, rate: Flags) -> Job:
    folder = f'runs/{tuning.name(entry.label)},seed={seed}'
    return Job(entry.label, folder, entry.flags | rate | {'seed': seed})

  def _first_seed(self, jobs: Sequence[Job]) -> list[Job]:
    """Runs the first seed; the jobs that it settled on."""
    told, budget, done = self._rules, None, []
    if told.budget == 'bytes':
      jobs = sorted(jobs, key=lambda job: job.label != told.reference)
      found = self._game.do(jobs[0])
      if found is None:
        raise ValueError(
          f'{told.reference}, the reference of the budget, has no result: '
          f'{self._game.missing[told.reference]}.'
        )
      budget = statistics.volume(found)
    for job in jobs:
      settled = tuning.matched(self._game, job, budget)
      folder = self._game.root / settled.folder
      if Workdir(folder, True, None).result() is not None:
        done.append(settled)
        self._points.append(settled)
    self.write()
    return done

  def _seed(self, jobs: Sequence[Job]) -> None:
    for job in jobs:
      self._points.append(job)
      self._game.do(job)
    self.write()


def _reseeded(job: Job, old: str, new: str) -> Job:
  """The job with another seed."""
  folder = job.folder.replace(f',seed={old}', f',seed={new}')
  return job._replace(folder=folder, flags=job.flags | {'seed': new})
