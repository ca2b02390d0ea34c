"""How far do losses alone take a prompt, for how many queries and bytes?

    python -m benchmarks.black_box [--quick] [--rows=gradient,mezo,...] \\
      [--seeds=0] [--out=FILE] -- <fedms flags>

Trains a soft prompt, and the head where the model has one, of one pre-trained
model: by gradients, by differences of losses, and by evolution strategies whose
searches stay with the clients (bbt), are averaged, or are ranked by the server;
and with one client a round. Prints a line of JSON for each look at the test
rows, four in a run, with what it had cost by then: rows whose loss was asked
for, FLOPs and bytes of all clients. The line of round 0 is the model as it was.
Rows of --out that are there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.shared_runs import SharedRuns
from fedms_jax.persistence import run_store
from fedms_jax.shell import flags, program_cache
from fedms_jax.shell import run as runner
from fedms_jax.simulation import evaluation, observer

LOOKS = 4
_SEARCH = ('--fedbpt.dimension=50', '--fedbpt.sigma=0.3', '--fedbpt.scale=0.3')
ROWS: dict[str, tuple[str, ...]] = {
  'gradient': ('--algorithm.name=promptfl',),
  'mezo': ('--algorithm.name=mezo', '--client.learning_rate=3e-4'),
  'spsa': (
    '--algorithm.name=mezo', '--client.learning_rate=3e-4', '--mezo.kind=spsa',
    '--mezo.directions=5',
  ),
  'fedkseed': ('--algorithm.name=fedkseed', '--fedkseed.rate=1e-4',
               '--fedkseed.step=0.01'),
  'bbt': ('--algorithm.name=bbt', '--bbt.dimension=50', '--bbt.sigma=0.3',
          '--bbt.scale=0.3', '--bbt.population=5'),
  'average': ('--algorithm.name=fedbpt', *_SEARCH),
  'rank': ('--algorithm.name=fedbpt', *_SEARCH, '--fedbpt.server=rank'),
  'one_client': ('--algorithm.name=fedbpt', *_SEARCH, '--cohort.size=1'),
}  # fmt: skip
QUICK = (
  '--flagfile=launch/presets/smoke.flags', '--algorithm.stage1_rounds=4',
  '--algorithm.stage2_rounds=0', '--prompt.length=2', '--client.epochs=1',
  '--client.batch_size=64',
)  # fmt: skip
_SPENT: tuple[str, ...] = ('queries', 'client_flops', 'bytes_up', 'bytes_down')


def looks(words: Sequence[str], shared: SharedRuns) -> Iterator[dict[str, Any]]:
  """Scores of a run in % beside its cost so far: at its start, and then by the
  round."""
  config = flags.parse(['fedms', *words])
  rounds = config.algorithm.stage1_rounds + config.algorithm.stage2_rounds
  every = max(1, rounds // LOOKS)
  config = flags.parse(['fedms', *words, f'--eval.every={every}'])
  records, keep = observer.Recorder(), run_store.Memory()
  source: Any = shared  # has what is asked of the module
  simulation = runner.simulated(
    config, shared.world(config), keep, observer.Observers(records), source
  )
  state = simulation.run()
  scores = evaluation.evaluate(simulation, state, evaluation.Scope())
  before = scores['models']['pretrained']
  start = {
    kind: before.get(name)
    for kind, name in (
      ('own', 'own_mean'), ('pooled', 'pooled'), ('unseen', 'unseen')
    )
  }  # fmt: skip
  spent: dict[str, float] = dict.fromkeys(_SPENT, 0.0)
  yield _line(0, spent, start)
  for record in records.records:
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


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  words = list(argv)
  cut = words.index('--') if '--' in words else len(words)
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--rows', default='')
  parser.add_argument('--seeds', default='0')
  parser.add_argument('--out', default='')
  return parser.parse_args(words[:cut]), words[cut + 1 :]


def _known(out: str) -> set[tuple[str, int]]:
  """Rows that a file has already."""
  if not out or not pathlib.Path(out).is_file():
    return set()
  lines = pathlib.Path(out).read_text().splitlines()
  return {(r['row'], r['seed']) for r in map(json.loads, lines)}


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark; gives the exit code."""
  options, own = _options(argv)
  wanted = [name for name in options.rows.split(',') if name]
  for name in wanted:
    if name not in ROWS:
      raise ValueError(
        f'--rows has {name!r}, which is none; allowed: {", ".join(ROWS)}.'
      )
  if options.quick:
    own = [*QUICK, *own]
    wanted = wanted or ['gradient', 'mezo', 'average']
  known = _known(options.out)
  with tempfile.TemporaryDirectory() as folder:
    shared = SharedRuns(pathlib.Path(folder))
    for seed in map(int, options.seeds.split(',')):
      for name in wanted or ROWS:
        if (name, seed) in known:
          continue
        words = ['--noprogress', *own, *ROWS[name], f'--seed={seed}']
        lines = [
          json.dumps({'row': name, 'seed': seed} | look)
          for look in looks(words, shared)
        ]
        print('\n'.join(lines), flush=True)
        if options.out:
          with open(options.out, 'a') as file:
            file.write('\n'.join(lines) + '\n')
  return 0


if __name__ == '__main__':
  program_cache.begin()
  raise SystemExit(main(sys.argv[1:]))
