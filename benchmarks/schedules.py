"""Which activation schedule gives the most accuracy per byte, FLOP, second?

    python -m benchmarks.schedules [--quick] [--schedules=dense,queue,...] \\
      [--seeds=0..2] [--budget=bytes] [--out=FOLDER] -- <fedms flags>

Runs a method, --algorithm.name, under many schedules, and writes
results.csv, results.parquet, report.html and table.md into --out. A second
start goes on where the first was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import search_and_seeds
from benchmarks.contest import Entry
from fedms_jax.launch import command
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config

QUICK = ('dense', 'queue', 'linear', 'fedra')


def entries(blocks: int, rounds: int) -> dict[str, Entry]:
  """All schedules for a model of L blocks whose first stage has so many
  rounds: those that grow reach all blocks in that time."""
  half, thirds = (blocks + 1) // 2, _thirds(blocks)
  doublings = max(1, (blocks - 1).bit_length())
  found = [
    _entry('dense', 'all blocks, always', 'dense'),
    _entry('queue', 'capability queue (FedMS)', 'queue'),
    _entry(
      'queue_bottom_up', 'input first', 'queue', order='bottom_up'
    ),
    _entry(
      'queue_importance', 'largest gradient first', 'queue',
      order='importance',
    ),
    _entry(
      'fixed', 'evenly, all after half of the rounds', 'fixed',
      interval=max(1, rounds // (2 * blocks)),
    ),
    _entry('linear', 'evenly over the rounds', 'linear'),
    _entry(
      'geometric', 'twice as many at even intervals', 'geometric',
      interval=max(1, rounds // (doublings + 1)),
    ),
    _entry(
      'random', 'a block more by chance', 'random',
      probability=f'{min(1.0, blocks / max(rounds, 1)):.4g}',
    ),
    _entry(
      'fedquad', 'depth from the output by budget of the device, as FedQuad '
      '(arXiv 2506.01001)', 'dense', budgets=thirds,
    ),
    _entry(
      'fedra', 'random blocks for each client and round, by budget, as FedRA '
      '(arXiv 2311.11227)', 'dense', order='allocation', budgets=thirds,
    ),
    _entry(
      'fed-hello', 'as fedra, blocks near the output more often, after '
      'Fed-HeLLo (arXiv 2506.12213)', 'dense', order='allocation',
      shape='rising', budgets=thirds,
    ),
    _entry(
      'f3ocus', 'important blocks, evenly over the cohort, by budget, after '
      'F3OCUS (arXiv 2411.11912)', 'dense', order='balanced', budgets=thirds,
    ),
    _entry(
      'f3ocus_scores', "by each client's own scores in each round, evenly over "
      'the cohort, by budget, F3OCUS (arXiv 2411.11912)', 'dense',
      order='f3ocus', budgets=thirds,
    ),
    _entry(
      'ffdapt', 'half of the blocks, around a sliding window, as FFDAPT '
      '(arXiv 2307.06933)', 'dense', order='window', cap=half,
    ),
    _entry(
      'droppeft', 'half of the blocks by chance, after DropPEFT '
      '(arXiv 2503.10217)', 'dense', order='dropout', cap=half,
    ),
    _entry(
      'femam', 'queue of losses, by standard deviation, as FeMAM',
      'queue_std', score='train_loss',
    ),
  ]  # fmt: skip
  return {entry.label: entry for entry in found}


def _entry(label: str, note: str, name: str, **more) -> Entry:
  flags = {'schedule.name': name}
  return Entry(
    label, flags | {f'schedule.{k}': str(v) for k, v in more.items()}, note
  )


def _thirds(blocks: int) -> str:
  """Budgets of a third, two thirds and all of the blocks."""
  return ','.join(str(max(1, round(blocks * i / 3))) for i in (1, 2, 3))


def _blocks(config: Config) -> int:
  """L of the model; of a checkpoint it is read from there."""
  if config.model.name == 'vit':
    return config.model.blocks
  return worlds.world(config).model.backbone.blocks


def main(argv: Sequence[str], runner=None) -> int:
  """Runs the benchmark; gives the exit code."""
  own, flags = command.split(argv)
  parser = search_and_seeds.parser('schedules', 'Compares schedules.')
  parser.add_argument(
    '--schedules', default='', help='rows, such as dense,queue (empty: all)'
  )
  parser.set_defaults(reference='dense')
  options = parser.parse_args(own)
  base = [*(search_and_seeds.QUICK if options.quick else []), *flags]
  config = command.check(base)
  known = entries(_blocks(config), config.algorithm.stage1_rounds)
  default = QUICK if options.quick else tuple(known)
  rows = search_and_seeds.chosen(options.schedules, known, 'schedules', default)
  title = f'Schedules of {config.algorithm.name} on {config.data.source}'
  return search_and_seeds.run(options, base, rows, title, runner)


if __name__ == '__main__':
  sys.exit(command.run(main))
