"""What is forgotten, and what is done against it.

    python -m benchmarks.continual [--quick] [--settings=class,task,domain] \
      [--rows=finetune,...] [--seeds=0] [--out=FILE] -- <fedms flags>

Every row meets the tasks of a setting one after another: classes two by two,
with or without being told the task of a test row, or domains. The rows between
`finetune` and `joint` remember in some way; `ncm` and `ridge` compute their
head from sums; `fedms` and `local` have models of their own on each client, so
look at their scores on clients' own rows. Prints a line of JSON for each row
and appends it to --out; rows that are there already are not run again. Scores
are in shares of 1, of the served model; `intransigence` is the mean over tasks
of what `joint` of the same seed has beyond it when a task is met, null without
such a row.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.shared_runs import SharedRuns
from fedms_jax.persistence import run_store
from fedms_jax.shell import flags, program_cache, task_run
from fedms_jax.shell import run as runner
from fedms_jax.shell.config import Config
from fedms_jax.simulation import observer, task_scores

SETTINGS = {
  'class': ('--tasks.count=5',),
  'task': ('--tasks.count=5', '--tasks.identity=known'),
  'domain': ('--tasks.count=4', '--tasks.name=domain'),
}
LORA = '--algorithm.name=fedit'
ROWS: dict[str, tuple[str, ...]] = {
  'joint': (LORA, '--tasks.method=joint'),
  'finetune': (LORA,),
  'replay_10': (LORA, '--tasks.method=replay', '--tasks.memory=10'),
  'replay_50': (LORA, '--tasks.method=replay', '--tasks.memory=50'),
  'ewc': (LORA, '--tasks.method=ewc', '--tasks.weight=100'),
  'lwf': (LORA, '--tasks.method=lwf', '--tasks.weight=3'),
  'glfc_50': (LORA, '--tasks.method=glfc', '--tasks.memory=50'),
  'orthogonal_lora': (LORA, '--tasks.method=orthogonal_lora'),
  'ncm': ('--algorithm.name=ncm',),
  'ridge': ('--algorithm.name=ridge',),
  'local': ('--algorithm.name=local',),
  'fedms': ('--algorithm.name=fedms',),
}
USUAL = (
  '--data.source=digits', '--data.public_fraction=0.3',
  '--partition.num_clients=10', '--partition.unseen_clients=1',
  '--cohort.size=5', '--model.blocks=3', '--model.width=32', '--model.heads=2',
  '--pretrain.epochs=20', '--client.epochs=2', '--schedule.name=dense',
  '--algorithm.stage1_rounds=4', '--algorithm.stage2_rounds=4',
)  # fmt: skip
QUICK = (
  '--model.blocks=2', '--model.width=8', '--pretrain.epochs=1',
  '--partition.num_clients=4', '--cohort.size=2', '--client.epochs=1',
  '--algorithm.stage1_rounds=1', '--algorithm.stage2_rounds=1',
  '--tasks.count=2',
)  # fmt: skip


def measured(config: Config, source: Any) -> tuple[dict[str, Any], Any]:
  """(the numbers of a run, its matrix of pooled scores)."""
  source.prepare(config)
  start = time.perf_counter()
  world = source.world(config)
  watch = observer.Observers(observer.Recorder())
  keep = run_store.Memory()
  simulation = runner.simulated(config, world, keep, watch, source)
  simulation.run()
  told = task_run.summary(config, world.data, simulation)['tasks']
  served = told['served']
  found = dict(told['scores']['pooled'][served])
  own = told['scores']['own'][served]
  found |= {f'own_{key}': own[key] for key in ('acc', 'forgetting', 'learning')}
  matrix = [step['pooled'][served] for step in told['steps']]
  sent = sum(entry.bytes_up for entry in simulation.ledgers.values())
  return found | {
    'kept_bytes': told['kept_bytes'],
    'megabytes_up': sent / 1e6,
    'seconds': time.perf_counter() - start,
  }, matrix


def _known(out: str) -> dict[tuple[str, str, int], dict[str, Any]]:
  """Rows that a file has already."""
  if not out or not pathlib.Path(out).is_file():
    return {}
  lines = pathlib.Path(out).read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {(r['row'], r['setting'], r['seed']): r for r in found}


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  words = list(argv)
  cut = words.index('--') if '--' in words else len(words)
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--settings', default='class,task,domain')
  parser.add_argument('--rows', default='')
  parser.add_argument('--seeds', default='0')
  parser.add_argument('--out', default='')
  return parser.parse_args(words[:cut]), words[cut + 1 :]


def main(argv: Sequence[str]) -> int:
  options, own = _options(argv)
  settings = options.settings.split(',')
  wanted = [name for name in options.rows.split(',') if name]
  if options.quick:
    settings, own = settings[:1], [*QUICK, *own]
    wanted = wanted or ['joint', 'finetune', 'ridge']
  known = _known(options.out)
  joint = {key: r['diagonal'] for key, r in known.items() if r.get('diagonal')}
  with tempfile.TemporaryDirectory() as folder:
    source = SharedRuns(pathlib.Path(folder))
    for seed in map(int, options.seeds.split(',')):
      for setting in settings:
        for name in wanted or ROWS:
          key = name, setting, seed
          if key in known:
            continue
          words = (*USUAL, *SETTINGS[setting], *own, *ROWS[name])
          config = flags.parse(
            ['fedms', '--noprogress', *words, f'--seed={seed}']
          )
          found, matrix = measured(config, source)
          diagonal = np.diag(matrix).tolist()
          joint[key] = diagonal
          best = joint.get(('joint', setting, seed))
          lost = None
          if best is not None:
            lost = float(task_scores.intransigence(matrix, best).mean())
          line = {'row': name, 'setting': setting, 'seed': seed, **found}
          line |= {'intransigence': lost, 'diagonal': diagonal}
          text = json.dumps(line)
          print(text, flush=True)
          if options.out:
            with open(options.out, 'a') as file:
              file.write(text + '\n')
  return 0


if __name__ == '__main__':
  program_cache.begin()
  raise SystemExit(main(sys.argv[1:]))
