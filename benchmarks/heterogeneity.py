"""Does a mixture of a global and a local expert help, and on which data?

    python -m benchmarks.heterogeneity [--quick] [--settings=label,feature] \\
      [--methods=fedms,local,...] [--seeds=0..4] [--search=1e-3,3e-3,1e-2] \\
      [--out=FOLDER] -- <fedms flags>

Methods meet clients that differ in different ways. Each client is tested on its
own rows, on the pooled rows of all, and on a mixed stream of both, as a device
meets. Learning rates are searched on validation rows of a seed that is not
reported; differences are paired over seeds. Each setting gets a folder in --out
with the runs; table.md holds the tables. A second start goes on where the first
was killed. --of=FOLDER,FOLDER writes such tables of what `benchmarks.methods`
has run, at equal bytes or FLOPs, and runs nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks import contest, heterogeneity_table, search_and_seeds, tuning
from benchmarks import methods as catalog
from benchmarks.contest import Contest, Entry, Flags, Job
from benchmarks.heterogeneity_table import Row, Setting
from benchmarks.shared_runs import SharedRuns
from fedms_jax.cluster.signals import EXIT_SAVED
from fedms_jax.launch import command
from fedms_jax.persistence.files import write_atomic
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.report import runs
from fedms_jax.shell.config import Config

REFERENCE = 'fedms'
METHODS = ('fedms', 'fedit', 'local', 'ditto', 'fedsa_lora', 'fedper',
           'fedrep', 'feddpa')  # fmt: skip
QUICK = ('fedms', 'fedit', 'local')
SEARCH = '1e-3,3e-3,1e-2'
# How clients differ: flags, whether class shares say anything, and a line.
SETTINGS: dict[str, tuple[Flags, str]] = {
  'label': (
    {'partition.name': 'dirichlet', 'partition.alpha': '0.3',
     'data.public_shift': 'none'},
    'label skew, Dirichlet(0.3); public and private rows alike',
  ),
  'feature': (
    {'partition.name': 'iid', 'data.shift': 'mixed',
     'data.public_shift': 'none'},
    'feature shift: the images of a client are as they are, turned, inverted '
    'or blurred; classes as they come',
  ),
  'concept': (
    {'partition.name': 'iid', 'data.concept_groups': '3',
     'data.public_shift': 'none'},
    'concept shift: three groups of clients mean other classes by the labels',
  ),
  'domain': (
    {'partition.name': 'dirichlet', 'partition.alpha': '0.3',
     'data.public_shift': 'rotate'},
    'label skew, and the server has pre-trained on images that are turned',
  ),
  'quantity': (
    {'partition.name': 'quantity', 'data.public_shift': 'none'},
    'clients differ in how many rows they have',
  ),
  'natural': (
    {'partition.name': 'natural'},
    "clients are the data's own groups (--data.group_column)",
  ),
}  # fmt: skip
DEFAULT = ('label', 'feature', 'concept', 'domain')
# FedMS with another gate, by what --methods calls them; the local expert has
# its own loss, so that the gate alone differs. What a gate reads tells where it
# is fitted: at the rate of the experts a few rounds hardly move it.
_OWN = {'algorithm.name': 'fedms', 'fedms.local_loss': 'own'}
_FITTED = {'gate.rows': 'crossfit'}
_GATES: dict[str, tuple[Flags, str]] = {
  'fixed': ({'gate.kind': 'fixed'}, 'both experts weigh the same'),
  'train': ({'gate.rows': 'train'}, 'learns from rows the expert trains on'),
  'validation': ({'gate.rows': 'validation'}, 'fitted to validation rows'),
  'crossfit': (_FITTED, 'fitted to rows held out of a second local expert'),
  'scalar': (_FITTED | {'gate.inputs': ''}, 'one log-odds, reads nothing'),
  'feature': (_FITTED | {'gate.inputs': 'feature'}, 'reads the frozen feature'),
  'confidence': (
    _FITTED | {'gate.inputs': 'confidence'},
    'reads how sure experts are',
  ),
  'likeness': (
    _FITTED | {'gate.inputs': 'likeness'},
    'reads whose rows are alike',
  ),
  'all': (
    _FITTED | {'gate.inputs': 'feature,confidence,likeness'},
    'reads all of it',
  ),
  'local': (_FITTED | {'gate.scope': 'local'}, 'of each client alone'),
}
GATES = {
  f'gate/{name}': Entry(f'gate/{name}', _OWN | flags, note)
  for name, (flags, note) in _GATES.items()
}
# Methods of one shared model, which are also served after adaptation.
ADAPTED = ('fedit', 'fedavg', 'linear_probe', 'ffa_lora', 'flora', 'fedex_lora')


class Told(NamedTuple):
  """The rules of a benchmark. search: learning rates; seed: of the search;
  share: of the rounds that a try has."""

  seeds: list[str]
  search: list[str]
  seed: str
  share: float
  axes: bool

  def lasting(self) -> dict:
    """What must stay the same when a benchmark goes on; seeds may be added."""
    return {
      'search': self.search,
      'search_seed': self.seed,
      'search_share': self.share,
      'axes': self.axes,
    }


def parser() -> argparse.ArgumentParser:
  """The benchmark's own options."""
  options = command.parser(
    'benchmarks.heterogeneity', 'Compares methods where clients differ.'
  )
  add = options.add_argument
  add('--out', default='runs/heterogeneity', help='folder of the results')
  add('--settings', default='', help=f'of {", ".join(SETTINGS)}; empty: '
      f'{", ".join(DEFAULT)}, quick: label')  # fmt: skip
  add('--methods', default='', help=f'rows; empty: {", ".join(METHODS)}')
  add('--seeds', default='', help='0,1,7 (empty: 0..4, quick: 0..1)')
  add('--search', default='auto', help='learning rates to try; auto: '
      f'{SEARCH}, and none with --quick; empty: none')  # fmt: skip
  add('--search_seed', default='1000', help='seed of the search, no other one')
  add('--search_share', type=float, default=0.5, help='part of the rounds that '
      'a try has')  # fmt: skip
  add('--axes', action='store_true', help='also search one parameter of each '
      'method that has one')  # fmt: skip
  add('--mixed', type=float, default=0.5, help='share of pooled rows in the '
      'mixed stream')  # fmt: skip
  add('--adapt', type=int, default=2, help='epochs of adaptation of methods of '
      'one shared model; 0: none')  # fmt: skip
  add('--of', default='', help='finished folders of benchmarks.methods, run '
      'with --eval.mixed: tables of these, and no run')  # fmt: skip
  add('--quick', action='store_true', help='few rows, small model, few rounds: '
      'its numbers mean nothing')  # fmt: skip
  return options


def rules(options: argparse.Namespace) -> Told:
  """The rules of the options.

  Raises:
    ValueError: they make no sense.
  """
  text = options.search
  if text == 'auto':
    text = '' if options.quick else SEARCH
  plain = argparse.Namespace(**vars(options) | {'search': text})
  plain.proposed, plain.budget, plain.reference = text, 'passes', ''
  plain.most = 2.0  # of another budget
  plain.seeds = options.seeds or ('0..1' if options.quick else '0..4')
  found = search_and_seeds.rules(plain)
  seed = found.seed
  if found.search and seed in found.seeds:
    raise ValueError(
      f'--search_seed={seed} is one of --seeds={",".join(found.seeds)}: rates '
      'that are searched on it would be reported on it. Take another one.'
    )
  if not 0 < options.mixed <= 1:
    raise ValueError(
      f'--mixed={options.mixed:g} is not allowed; allowed: above 0 to 1.'
    )
  return Told(found.seeds, found.search, seed, found.share, options.axes)


def entries(
  names: str, options: argparse.Namespace, config: Config
) -> list[Entry]:
  """The methods that are compared, as `benchmarks.methods` has them."""
  default = QUICK if options.quick else METHODS
  known = catalog.entries(config) | GATES
  if options.axes:
    known = catalog.with_axes(known, config)
  return search_and_seeds.chosen(names, known, 'methods', default)


def looks(label: str, options: argparse.Namespace) -> Flags:
  """What is measured of the runs that are reported; it changes no training."""
  found = {
    'eval.mixed': f'{options.mixed:g}',
    'eval.metrics': 'ece',
    'eval.every': '2',
  }
  if options.adapt and label in ADAPTED:
    found['eval.adapt'] = str(options.adapt)
  if label == REFERENCE:
    found['algorithm.label_prior'] = 'validation'
  return found


class Field:
  """The methods in one setting, under the rules."""

  def __init__(
    self,
    game: Contest,
    rows: Sequence[Entry],
    told: Told,
    seen: Callable[[str], Flags],
  ):
    """seen: label -> what is measured of its runs."""
    self._game, self._rows, self._told = game, rows, told
    self._seen = seen
    self.rates: dict[str, Flags] = {}
    self.tries: dict[str, int] = {}
    self.scores: dict[str, dict[str, float | None]] = {}

  def search(self) -> None:
    """Finds the learning rate of each method, on the seed of the search."""
    for entry in self._rows:
      told, found = self._told, {}
      jobs = tuning.tries(self._game, entry, told.search, told.share, told.seed)
      tried = tuning.search(self._game, jobs, told.search) if jobs else {}
      self.scores |= {entry.label: tuning.scores(tried)} if jobs else {}
      best, count = tuning.best(tried), len(jobs)
      if best is not None:
        config = self._game.config(self._job(entry, told.seed))
        found = tuning.rates(config, best)
        if entry.axis is not None:
          flag, values = entry.axis
          more = tuning.further(self._game, entry, best, told.share, told.seed)
          other = tuning.best(tuning.search(self._game, more, values))
          found |= {} if other is None else {flag: other}
          count += len(more) - 1  # one of them had been run
      self.rates[entry.label], self.tries[entry.label] = found, count

  def play(self) -> None:
    """All runs that are reported, seed by seed, for these share their data."""
    jobs = [
      self._job(entry, seed)
      for seed in self._told.seeds
      for entry in self._rows
    ]
    self._game.planned = list(jobs)
    for job in jobs:
      self._game.do(job)
    told = {
      'title': f'Clients that differ: {self._game.root.name}',
      'reference': REFERENCE,
      'search': self.scores,
      'notes': {entry.label: entry.note for entry in self._rows},
      'rules': [],
    }
    self._game.write(jobs, told)

  def found(self) -> list[Row]:
    """The rows of the table: each method, and what else its runs serve."""
    out = []
    for entry in self._rows:
      held = []
      for seed in self._told.seeds:
        folder = self._game.root / self._job(entry, seed).folder
        if Workdir(folder, True, None).result() is not None:
          held.append(runs.read(folder))
      if held:
        rate = self.rates[entry.label]
        out.append(Row(entry.label, held, rate, self.tries[entry.label]))
    return out

  def _job(self, entry: Entry, seed: str) -> Job:
    flags = entry.flags | self.rates.get(entry.label, {})
    flags |= self._seen(entry.label) | {'seed': seed}
    return Job(
      entry.label, f'runs/{tuning.name(entry.label)},seed={seed}', flags
    )


def main(argv: Sequence[str], runner: Callable | None = None) -> int:
  """Runs the benchmark; gives the exit code: 1 if a run crashed, 75 if a signal
  stopped it. runner: see `Contest`."""
  own, flags = command.split(argv)
  options = parser().parse_args(own)
  if options.of:
    print(_of(options.of.split(',')))
    return 0
  told, root = rules(options), pathlib.Path(options.out).absolute()
  names = [x.strip() for x in options.settings.split(',') if x.strip()]
  names = names or (['label'] if options.quick else list(DEFAULT))
  for name in names:
    if name not in SETTINGS:
      raise ValueError(
        f'--settings has {name!r}, which is none. Allowed: '
        f'{", ".join(SETTINGS)}.'
      )
  config = command.check(_base(options.quick, names[0], flags))
  rows = entries(options.methods, options, config)
  if runner is None:
    runner = contest.in_process(SharedRuns(root / 'pretrained'))
  crashed, done = False, []
  for name in names:
    game = Contest(root / name, _base(options.quick, name, flags), runner)
    for entry in rows:
      game.config(Job(entry.label, 'check', entry.flags))
    contest.settle(game.root, game.base, told.lasting())
    field = Field(game, rows, told, lambda x: looks(x, options))
    try:
      field.search()
      field.play()
    except contest.Stopped:
      print(f'stopped; the same command goes on with {root}')
      return EXIT_SAVED
    crashed |= game.crashed
    done.append(Setting(name, SETTINGS[name][1], field.found(), game.missing))
    text = heterogeneity_table.text(done, REFERENCE, told, options.mixed)
    write_atomic(root / 'table.md', text)
  print(f'{root}/table.md')
  return 1 if crashed else 0


def _of(folders: Sequence[str]) -> str:
  """The tables of finished folders of `benchmarks.methods`."""
  found = []
  for folder in folders:
    setting, told = heterogeneity_table.finished(pathlib.Path(folder))
    first = setting.rows[0].runs[0].flags
    share = float(first['eval.mixed'])
    found.append(heterogeneity_table.text([setting], REFERENCE, told, share))
  return '\n'.join(found)


def _base(short: bool, name: str, flags: Sequence[str]) -> list[str]:
  """The words that all runs of a setting share; those of a user come last."""
  quick = search_and_seeds.QUICK if short else []
  words = [f'--{k}={x}' for k, x in SETTINGS[name][0].items()]
  return [*quick, *words, *flags]


if __name__ == '__main__':
  sys.exit(command.run(main))
