"""What federated pre-training costs in perplexity, and saves in bytes.

    python -m benchmarks.pretraining [--quick] [--steps=500] \\
      [--every=10,50,250] [--rows=central,mean,...] [--seeds=0..2] \\
      [--out=FOLDER] -- --data.source=<texts> <fedms flags>

Every row trains one model from random weights for as many steps in a row: the
server alone on public rows (central), or clients, whose updates meet every H
local steps, under an outer optimizer, with inner optimizers that are kept or
reset; one client a round (one_client); or the server first, then clients
(two_phases), or both in turn, twice (alternating). The data are texts with a
column `genre`, of which a client has one; other flags may say otherwise.
--quick makes texts of its own.

Writes results.csv, results.parquet, report.html and table.md into --out, and
prints a line of JSON for each run. A second start goes on where the first was
killed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import contest, tuning
from benchmarks.contest import Contest, Entry
from benchmarks.search_and_seeds import Championship, Rules
from fedms_jax.cluster.signals import EXIT_SAVED
from fedms_jax.launch import command, grid
from fedms_jax.persistence import writers
from fedms_jax.report import runs
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config

OUTER = {
  'mean': ('--server.optimizer=mean', '--server.learning_rate=1'),
  'nesterov': (
    '--server.optimizer=nesterov',
    '--server.learning_rate=0.7',
    '--server.momentum=0.9',
  ),
  'adam': ('--server.optimizer=adam', '--server.learning_rate=0.03'),
}
INNER = (
  '--client.optimizer=adamw', '--client.beta2=0.95', '--client.schedule=cosine',
  '--client.weight_decay=0.1', '--client.learning_rate=3e-3',
  '--pretrain.learning_rate=3e-3', '--pretrain.weight_decay=0.1',
)  # fmt: skip
USUAL = (
  '--data.input_column=text', '--data.group_column=genre',
  '--data.max_tokens=64', '--data.pack', '--data.max_rows=8000',
  '--partition.name=natural', '--partition.num_clients=4',
  '--partition.unseen_clients=2', '--partition.test=0.1',
  '--partition.validation=0.05', '--cohort.size=4', '--model.name=gpt',
  '--model.head=causal_lm', '--model.tokenizer=bpe', '--model.vocabulary=512',
  '--model.width=32', '--model.heads=2', '--model.blocks=2',
  '--client.batch_size=4', '--pretrain.batch_size=16', '--eval.pooled_rows=500',
  '--eval.validate_every=1000',
)  # fmt: skip
QUICK = (
  '--data.train_split=test', '--data.max_tokens=32', '--data.max_rows=0',
  '--partition.num_clients=6', '--model.tokenizer=bytes',
  '--model.vocabulary=1024', '--model.width=16',
)  # fmt: skip


class Row(NamedTuple):
  """A row of the table. every: local steps between meetings, 0: there are
  none. words: the flags that make it."""

  name: str
  every: int
  state: str
  words: tuple[str, ...]


def rows(steps: int, every: Sequence[int]) -> Iterator[Row]:
  """All rows, for a budget of steps in a row."""
  yield Row('central', 0, 'kept', (f'--stages=S{steps}',))
  for h in every:
    rounds = max(1, steps // h)
    federated = f'--stages=F{rounds}x{h}'
    for state in ('reset', 'kept'):
      for outer, words in OUTER.items():
        own = (federated, f'--client.state={state}', *words)
        yield Row(outer, h, state, own)
    one = (federated, '--cohort.size=1', *OUTER['nesterov'])
    yield Row('one_client', h, 'reset', one)
    both = rounds // 2, steps // 2
    half = f'--stages=S{both[1]},F{max(1, both[0])}x{h}'
    yield Row('two_phases', h, 'reset', (half, *OUTER['nesterov']))
    if rounds >= 4:
      turns = ','.join(
        f'S{server},F{clients}x{h}'
        for clients, server in zip(*map(_halves, both), strict=True)
      )
      words = (f'--stages={turns}', *OUTER['nesterov'])
      yield Row('alternating', h, 'reset', words)


def _halves(n: int) -> tuple[int, int]:
  """Two whole numbers that add up to n, the larger one first."""
  return n - n // 2, n // 2


class OneWorld:
  """Stands for the module `shell.world` in `shell.run.run`: runs of one seed
  share data and model, which no row changes."""

  initial = staticmethod(worlds.initial)
  pretrained = staticmethod(worlds.pretrained)

  def __init__(self):
    self._seed: int | None = None
    self._like: worlds.World | None = None

  def world(self, config: Config) -> worlds.World:
    """As `world.world`."""
    like = self._like if config.seed == self._seed else None
    self._like, self._seed = worlds.world(config, like), config.seed
    return self._like

  def prepare(self, config: Config) -> None:
    """Makes ready what runs share, so that a run's seconds are its own."""
    self.world(config)


def measured(run: runs.Run) -> dict[str, Any]:
  """The numbers of a run."""
  (found,) = run.summary['models'].values()
  last = run.records[-1]
  return {
    'own_perplexity': float(np.exp(found['own_token_loss'])),
    'worst_decile_perplexity': float(np.exp(found['own_loss_worst_decile'])),
    'pooled_perplexity': float(np.exp(found['pooled_loss'])),
    'unseen_perplexity': float(np.exp(found['unseen_token_loss'] or 0.0)),
    'bits_per_byte': found.get('bits_per_byte'),
    'megabytes_up': run.summary['total']['bytes_up'] / 1e6,
    'tokens': sum(r.get('tokens', 0.0) for r in run.records),
    'last_drift': last.get('drift'),
    'last_cosine': last.get('cosine'),
    'seconds': run.summary['run_seconds'],
  }


def texts(folder: pathlib.Path) -> None:
  """Documents of sentences, each document with words that it prefers."""
  import datasets

  rng = np.random.default_rng(0)
  words = [''.join(rng.choice(list('aeioubdklmnrst'), 4)) for _ in range(40)]
  lines, genres = [], []
  for document in range(8):
    likely = rng.dirichlet(np.full(len(words), 0.2))
    for _ in range(40):
      lines.append(' '.join(rng.choice(words, 6, p=likely)))
      genres.append(f'd{document}')
  found = {'text': lines, 'genre': genres}
  datasets.Dataset.from_dict(found).to_parquet(folder / 'test.parquet')


def entries(steps: int, every: Sequence[int]) -> dict[str, tuple[Row, Entry]]:
  """The rows by their labels."""
  found = {}
  for row in rows(steps, every):
    label = f'{row.name}, H={row.every}, {row.state}' if row.every else row.name
    flags = writers.parse_flags('\n'.join(row.words))
    found[label] = row, Entry(label, flags)
  return found


def _parser() -> argparse.ArgumentParser:
  parser = command.parser('benchmarks.pretraining', 'Federated pre-training.')
  add = parser.add_argument
  add('--quick', action='store_true', help='its numbers mean nothing')
  add('--steps', type=int, default=0, help='in a row (0: 500, quick: 4)')
  add('--every', default='', help='of H (empty: 10,50,250, quick: 2)')
  add('--rows', default='', help='such as central,mean (empty: all, quick: 2)')
  add('--seeds', default='', help='0,1,7 (empty: 0..2, quick: 0)')
  add('--out', default='', help='folder of the results (empty: none is kept)')
  return parser


def _known(options, found):
  """Those of the rows, by label, that are asked for."""
  names = list(dict.fromkeys(row.name for row, _ in found.values()))
  few = 'central,nesterov' if options.quick else ''
  wanted = [n for n in (options.rows or few).split(',') if n] or names
  for name in wanted:
    if name not in names:
      raise ValueError(
        f'--rows has {name!r}, which is none. Allowed: {", ".join(names)}.'
      )
  return {
    label: pair for label, pair in found.items() if pair[0].name in wanted
  }


def main(argv: Sequence[str], runner=None) -> int:
  """Runs the benchmark; gives the exit code."""
  own, flags = command.split(argv)
  options = _parser().parse_args(own)
  steps = options.steps or (4 if options.quick else 500)
  every = options.every or ('2' if options.quick else '10,50,250')
  known = _known(options, entries(steps, [int(h) for h in every.split(',')]))
  with contextlib.ExitStack() as kept:
    folder = kept.enter_context(tempfile.TemporaryDirectory())
    base = [*INNER, *USUAL, *flags]
    if options.quick:
      texts(pathlib.Path(folder))
      source = f'--data.source={folder}'
      base = [*INNER, *USUAL, *QUICK, source, *flags]
    root = pathlib.Path(options.out or f'{folder}/runs').absolute()
    seeds = options.seeds or ('0' if options.quick else '0..2')
    seeds = grid.axis(f'seed={seeds}')[1]
    contest.settle(root, base, {'steps': steps})
    game = Contest(root, base, runner or contest.in_process(OneWorld()))
    rules = Rules(seeds, [], 1.0, 'passes', '')
    chosen = [entry for _, entry in known.values()]
    title = f'Pre-training in {steps} steps'
    try:
      # Its words are no lines of JSON.
      with contextlib.redirect_stdout(sys.stderr):
        field = Championship(game, chosen, rules, title)
        field.play()
        field.write()
    except contest.Stopped:
      print(f'stopped; the same command goes on with {root}', file=sys.stderr)
      return EXIT_SAVED
    _tell(root, known, seeds, steps)
  return 1 if game.crashed else 0


def _tell(root: pathlib.Path, known, seeds: Sequence[str], steps: int) -> None:
  """Prints the numbers of all runs that are there."""
  for label, (row, _) in known.items():
    for seed in seeds:
      folder = root / f'runs/{tuning.name(label)},seed={seed}'
      if (folder / 'summary.json').exists():
        line = {'row': row.name, 'every': row.every, 'state': row.state}
        line |= {'seed': int(seed), 'steps': steps}
        print(json.dumps(line | measured(runs.read(folder))))


if __name__ == '__main__':
  sys.exit(command.run(main))
