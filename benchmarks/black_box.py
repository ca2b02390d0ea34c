"""How far do losses alone take a prompt, for how many queries and bytes?

    python -m benchmarks.black_box [--quick] [--rows=gradient,mezo,...] \\
      [--seeds=0..2] [--search_seeds=10,11] [--out=FOLDER] -- <fedms flags>

Trains a soft prompt, and the head where the model has one, of one pre-trained
model: by gradients, by differences of losses, and by evolution strategies whose
searches stay with the clients (bbt), are averaged, or are ranked by the server;
with one client a round; and an image that is added to images, with the gains of
SPSA-GC. A client passes its batch through the model 20 times in a round of
every row, a gradient counted as three passes.

The setting of each row is the best of three on validation rows of other seeds.
Writes search.json, results.csv, results.parquet, report.html and table.md into
--out, and prints a line of JSON for each look at the test rows, four in a run,
with what it had cost by then: rows whose loss was asked for, FLOPs and bytes of
all clients. The line of round 0 is the model as it was. A second start goes on
where the first was killed.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import contest, search_and_seeds, tuning
from benchmarks.contest import Axis, Contest, Entry, Flags, Job
from benchmarks.search_and_seeds import Championship, Rules
from benchmarks.shared_runs import SharedRuns
from benchmarks.tuning import Tried
from fedms_jax.cluster.signals import EXIT_SAVED
from fedms_jax.launch import command, grid
from fedms_jax.persistence.files import write_atomic
from fedms_jax.report import runs

# Of the values of each row; None: a run that diverged.
Scores = dict[str, dict[str, float | None]]

LOOKS = 4
PASSES = 20  # of a client's batch through the model, in a round
USUAL = (
  '--data.source=digits', '--data.public_fraction=0.3',
  '--partition.name=dirichlet', '--partition.num_clients=10',
  '--partition.unseen_clients=2',
  '--cohort.size=5', '--model.blocks=2', '--model.width=32', '--model.heads=2',
  '--prompt.length=4', '--pretrain.epochs=20', '--client.batch_size=32',
  '--algorithm.stage1_rounds=16', '--algorithm.stage2_rounds=0',
)  # fmt: skip
QUICK = (
  '--model.width=16', '--pretrain.epochs=1', '--partition.num_clients=4',
  '--partition.unseen_clients=1', '--cohort.size=2', '--prompt.length=2',
  '--algorithm.stage1_rounds=4', '--client.batch_size=8',
)  # fmt: skip
# As its paper has it: estimates are not scaled by how large they were.
_PLAIN: Flags = {
  'client.optimizer': 'sgd',
  'client.momentum': '0',
  'client.max_norm': '0',
}
_RATE = 'client.learning_rate'
_SPENT = ('queries', 'client_flops', 'bytes_up', 'bytes_down')


def _of(name: str, steps: int, axis: Axis, note: str, **more: Any) -> Entry:
  """A row of a method, which begins at the middle of its axis."""
  flags = {'algorithm.name': name, 'client.steps': str(steps)}
  flags |= {axis.flag: axis.values[len(axis.values) // 2]}
  options = {f'{name}.{key}': str(value) for key, value in more.items()}
  return Entry(name, flags | options, note, axis)


def _searched(name: str, note: str, **more: Any) -> Entry:
  axis = Axis(f'{name}.scale', ('0.1', '0.3', '1'))
  return _of(name, 4, axis, note, dimension=50, population=5, **more)


def entries(rounds: int, cohort: int) -> dict[str, Entry]:
  """All rows, of so many rounds; with one client a round, as many rounds as
  ask for as much."""
  rate = Axis(_RATE, ('3e-3', '1e-2', '3e-2'))
  gradient = _of('promptfl', 7, rate, 'gradients, Adam')
  slow = Axis(_RATE, ('3e-4', '1e-3', '3e-3'))
  mezo = _of('mezo', 10, slow, 'MeZO: one normal direction a step')
  fast = Axis(_RATE, ('3e-3', '1e-2', '3e-2'))
  spsa = _of('mezo', 2, fast, 'SPSA, five directions a step', kind='spsa',
             directions=5)  # fmt: skip
  gains = Axis('blackvip.rate', ('3e-3', '1e-2', '3e-2'))
  numbers = Axis('fedkseed.rate', ('1e-4', '3e-4', '1e-3'))
  average = _searched('fedbpt', 'CMA-ES, clients averaged')
  alone = {
    'cohort.size': '1',
    'algorithm.stage1_rounds': str(rounds * cohort),
  }
  return {
    'gradient': gradient,
    'mezo': mezo._replace(flags=mezo.flags | _PLAIN),
    'spsa': spsa._replace(flags=spsa.flags | _PLAIN),
    'spsa_gc': _of(
      'blackvip', 2, gains, 'an image, by SPSA with the gains of SPSA-GC'
    ),
    'fedkseed': _of(
      'fedkseed', 10, numbers, 'directions of seeds', step=0.01, seeds=1024
    ),
    'bbt': _searched('bbt', 'CMA-ES, each client alone'),
    'average': average,
    'rank': _searched('fedbpt', 'CMA-ES, clients ranked', server='rank'),
    'one_client': average._replace(
      flags=average.flags | alone, note='CMA-ES, one client a round'
    ),
  }


def tuned(
  game: Contest, rows: Sequence[Entry], seeds: Sequence[str]
) -> tuple[list[Entry], Scores]:
  """(the rows at the best values of their axes, the scores of all values).

  A score is the mean over seeds of the mean validation score in the last
  quarter of a run.
  """
  every: dict[str, dict[str, list[Tried | None]]] = {
    entry.label: {value: [] for value in _axis(entry).values} for entry in rows
  }
  for seed in seeds:  # outermost: runs of a seed share its data
    for entry in rows:
      found = _tries(game, entry, seed)
      for value, one in found.items():
        every[entry.label][value].append(one)
  scores, out = {}, []
  for entry in rows:
    tried = {value: _mean(found) for value, found in every[entry.label].items()}
    scores[entry.label] = tuning.scores(tried)
    best = tuning.best(tried)
    more = {} if best is None else {_axis(entry).flag: best}
    out.append(entry._replace(flags=entry.flags | more))
  return out, scores


def _mean(tried: Sequence[Tried | None]) -> Tried | None:
  """None if one of them is missing."""
  known = [one for one in tried if one is not None]
  if len(known) < len(tried):
    return None
  score, loss, _ = np.mean(known, axis=0).tolist()
  return Tried(score, loss, known[0].nats)


def _axis(entry: Entry) -> Axis:
  assert entry.axis is not None  # all rows have one
  return entry.axis


def _tries(game: Contest, entry: Entry, seed: str) -> dict[str, Tried | None]:
  """What came of a row's values with a seed."""
  flag, values = _axis(entry)
  jobs = [
    Job(
      entry.label,
      f'search/{tuning.name(entry.label)},{flag}={value},seed={seed}',
      entry.flags | {flag: value, 'seed': seed, 'eval.validate_every': '1'},
    )
    for value in values
  ]
  return tuning.search(game, jobs, values)


def looks(run: runs.Run) -> Iterator[dict[str, Any]]:
  """Scores of a run in % beside its cost so far: at its start, and then by the
  round."""
  before = run.summary['models']['pretrained']
  start = {
    kind: before.get(name)
    for kind, name in (
      ('own', 'own_mean'), ('pooled', 'pooled'), ('unseen', 'unseen')
    )
  }  # fmt: skip
  spent: dict[str, float] = dict.fromkeys(_SPENT, 0.0)
  yield _line(0, spent, start)
  for record in run.records:
    if 'depth' not in record:
      continue
    spent = {name: spent[name] + record[name] for name in _SPENT}
    if 'eval_own' in record:
      found = {
        kind: record.get(f'eval_{kind}') for kind in ('own', 'pooled', 'unseen')
      }
      yield _line(record['round'] + 1, spent, found)


def _line(round: int, spent: dict[str, float], scores: dict[str, Any]):
  """What is printed of a look."""
  found = {k: None if x is None else 100 * x for k, x in scores.items()}
  return {
    'round': round,
    'queries': spent['queries'],
    'gigaflops': spent['client_flops'] / 1e9,
    'kilobytes_up': spent['bytes_up'] / 1e3,
    'kilobytes_down': spent['bytes_down'] / 1e3,
    **found,
  }


def _parser():
  parser = command.parser('benchmarks.black_box', 'Prompts by losses alone.')
  add = parser.add_argument
  add('--quick', action='store_true', help='its numbers mean nothing')
  add('--rows', default='', help='such as gradient,mezo (empty: all)')
  add('--seeds', default='', help='0,1,7 (empty: 0..2, quick: 0)')
  add(
    '--search_seeds',
    default='auto',
    help='of the search; auto: 10,11, and with --quick none; empty: none',
  )
  add('--out', default='', help='folder of the results (empty: none is kept)')
  return parser


def _play(game: Contest, rows: Sequence[Entry], seeds, search, title: str):
  """Searches, runs all seeds, writes the page."""
  if search:
    rows, scores = tuned(game, rows, search)
    text = json.dumps(scores, indent=2)
    write_atomic(game.root / 'search.json', text + '\n')
  for i, entry in enumerate(rows):
    config = game.config(Job(entry.label, 'check', entry.flags))
    every = max(1, config.algorithm.stage1_rounds // LOOKS)
    more = entry.flags | {'eval.every': str(every)}
    rows = [*rows[:i], entry._replace(flags=more), *rows[i + 1 :]]
  field = Championship(game, rows, Rules(seeds, [], 1.0, 'passes', ''), title)
  try:
    field.play()
  finally:
    field.write()


def _rows(options, config) -> list[Entry]:
  """The rows that are asked for."""
  rounds, cohort = config.algorithm.stage1_rounds, config.cohort.size
  known = {
    label: entry._replace(label=label)
    for label, entry in entries(rounds, cohort).items()
  }
  few = ('gradient', 'mezo', 'average')
  default = few if options.quick else tuple(known)
  return search_and_seeds.chosen(options.rows, known, 'rows', default)


def main(argv: Sequence[str], runner=None) -> int:
  """Runs the benchmark; gives the exit code."""
  own, flags = command.split(argv)
  options = _parser().parse_args(own)
  base = [*USUAL, *(QUICK if options.quick else ()), *flags]
  config = command.check(base)
  rows = _rows(options, config)
  seeds = options.seeds or ('0' if options.quick else '0..2')
  seeds = grid.axis(f'seed={seeds}')[1]
  search = options.search_seeds
  if search == 'auto':
    search = '' if options.quick else '10,11'
  search = grid.axis(f'seed={search}')[1] if search else []
  with contextlib.ExitStack() as kept:
    out = options.out or kept.enter_context(tempfile.TemporaryDirectory())
    root = pathlib.Path(out).absolute()
    runner = runner or contest.in_process(SharedRuns(root / 'pretrained'))
    contest.settle(root, base, {'search seeds': search})
    game = Contest(root, base, runner)
    try:
      # Its words are no lines of JSON.
      with contextlib.redirect_stdout(sys.stderr):
        title = f'Prompts by losses alone on {config.data.source}'
        _play(game, rows, seeds, search, title)
    except contest.Stopped:
      print(f'stopped; the same command goes on with {root}', file=sys.stderr)
      return EXIT_SAVED
    _tell(root, rows, seeds)
  return 1 if game.crashed else 0


def _tell(root: pathlib.Path, rows: Sequence[Entry], seeds: Sequence[str]):
  """Prints the looks of all runs that are there."""
  for entry in rows:
    for seed in seeds:
      folder = root / f'runs/{tuning.name(entry.label)},seed={seed}'
      if (folder / 'summary.json').exists():
        for look in looks(runs.read(folder)):
          print(json.dumps({'row': entry.label, 'seed': int(seed)} | look))


if __name__ == '__main__':
  sys.exit(command.run(main))
