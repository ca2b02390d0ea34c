"""The order of a benchmark: search, first seed, further seeds, report."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Sequence

from benchmarks import contest, shared_runs, tuning
from benchmarks.contest import Contest, Entry, Flags, Job
from benchmarks.rules import Rules, chosen, parser, rules
from fedms_jax.cluster.signals import EXIT_SAVED
from fedms_jax.persistence.workdir import Workdir

__all__ = ['QUICK', 'Championship', 'Rules', 'chosen', 'parser', 'rules', 'run']
QUICK = ['--flagfile=launch/presets/smoke.flags']


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
  if told.budget != 'passes' and not told.reference:
    raise ValueError(f'--budget={told.budget} needs --reference=<row>.')
  tries = _searched(options.searched) or root
  if runner is None:
    shared = shared_runs.SharedRuns(tries / 'pretrained')
    runner = contest.in_process(shared)
  game = Contest(root, base, runner, after, tries)
  contest.agree(tries, {'flags': list(base)} | told.tried())
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


def _searched(folder: str) -> pathlib.Path | None:
  """The folder whose search is shared, if any."""
  if not folder:
    return None
  path = pathlib.Path(folder).absolute()
  if not (path / contest.RULES).exists():
    raise ValueError(
      f'--searched={folder} holds no benchmark: it has no {contest.RULES}. '
      'Give the --out of one, or leave it out.'
    )
  return path


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
    self._tried: dict[str, list[Job]] = {}  # runs of a search, by row

  def play(self) -> None:
    """All runs that are not finished yet."""
    first, *others = self._rules.seeds
    tries = {e.label: self._tries(e) for e in self._entries}
    self._tried = {label: list(jobs) for label, jobs in tries.items()}
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
      'search_costs': tuning.search_costs(self._game, self._tried),
      'notes': {entry.label: entry.note for entry in self._entries},
      'groups': {e.label: e.group for e in self._entries if e.group},
      'rules': self._rules.words() + self._words(),
    }
    self._game.write(self._points, told)

  def _words(self) -> list[str]:
    """What of the search is not the same for all rows."""
    if not self._rules.search:
      return []

    def listed(alone: bool) -> str:
      return '; '.join(
        f'--{e.axis.flag} of {e.label} ({", ".join(e.axis.values)})'
        for e in self._entries
        if e.axis and e.alone == alone
      )

    told = {
      'At the best of these rates, in the same way': listed(False),
      'In place of these rates, in the same way': listed(True),
    }
    return [f'{how}: {what}.' for how, what in told.items() if what]

  def _tries(self, entry: Entry) -> list[Job]:
    return tuning.tries(
      self._game,
      entry,
      self._rules.search,
      self._rules.share,
      self._rules.seed,
    )

  def _rate(self, entry: Entry, tries: Sequence[Job]) -> Flags:
    """The flags of the learning rate that is best for a row."""
    if not tries:
      return {}
    alone = entry.axis if entry.alone else None
    values = alone.values if alone else self._rules.search
    tried = tuning.search(self._game, tries, values)
    title = f'{entry.label}: {alone.flag}' if alone else entry.label
    self._search[title] = tuning.scores(tried)
    found = tuning.best(tried)
    if found is None:
      return {}
    if alone:
      return {alone.flag: found}
    config = self._game.config(self._job(entry, self._rules.seeds[0], {}))
    return tuning.rates(config, found) | self._further(entry, found)

  def _further(self, entry: Entry, rate: str) -> Flags:
    """The value that is best along the row's own axis, at its best rate."""
    if entry.axis is None or entry.alone:
      return {}
    told, (flag, values) = self._rules, entry.axis
    jobs = tuning.further(self._game, entry, rate, told.share, told.seed)
    new = [job for job in jobs if job not in self._tried[entry.label]]
    self._tried[entry.label] += new
    tried = tuning.search(self._game, jobs, values)
    self._search[f'{entry.label}: {flag}'] = tuning.scores(tried)
    best = tuning.best(tried)
    return {} if best is None else {flag: best}

  def _job(self, entry: Entry, seed: str, rate: Flags) -> Job:
    folder = f'runs/{tuning.name(entry.label)},seed={seed}'
    return Job(entry.label, folder, entry.flags | rate | {'seed': seed})

  def _first_seed(self, jobs: Sequence[Job]) -> list[Job]:
    """Runs the first seed; the jobs that it settled on."""
    told, budget, done = self._rules, None, []
    if told.budget != 'passes':
      jobs = sorted(jobs, key=lambda job: job.label != told.reference)
      budget = self._budget(jobs[0])
    once = {entry.label for entry in self._entries if entry.once}
    for job in jobs:
      settled = self._settled(job, None if job.label in once else budget)
      folder = self._game.root / settled.folder
      if Workdir(folder, True, None).result() is not None:
        done.append(settled)
        self._points.append(settled)
    self.write()
    return done

  def _budget(self, job: Job) -> tuning.Budget:
    """What the reference spends."""
    found, told = self._game.do(job), self._rules
    if found is None:
      raise ValueError(
        f'{told.reference}, the reference of the budget, has no result: '
        f'{self._game.missing[told.reference]}.'
      )
    spent = tuning.COSTS[told.budget]
    return tuning.Budget(spent(found), spent, told.most)

  def _settled(self, job: Job, budget: tuning.Budget | None) -> Job:
    """The job with the rounds that the budget gives it."""
    if budget is None or job.label == self._rules.reference:
      return tuning.matched(self._game, job, None)
    tried = self._tried[job.label]
    factor = tuning.first_factor(self._game, job, tried, budget)
    return tuning.matched(self._game, job, budget, factor)

  def _seed(self, jobs: Sequence[Job]) -> None:
    for job in jobs:
      self._points.append(job)
      self._game.do(job)
    self.write()


def _reseeded(job: Job, old: str, new: str) -> Job:
  """The job with another seed."""
  folder = job.folder.replace(f',seed={old}', f',seed={new}')
  return job._replace(folder=folder, flags=job.flags | {'seed': new})
