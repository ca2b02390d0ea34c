"""How long, in virtual seconds, until a target: dense LoRA against SAL.

    python -m benchmarks.time [--quick] [--target=0.74] [--rounds=40] \\
      [--rows=wait,fedbuff] [--seeds=0,1,2] [--out=FILE] -- <fedms flags>

Every row runs one method on clients with lognormal devices until the score of
its model on the pooled test rows, looked at after each server step, reaches the
target: with all blocks active (dense) or by a queue (sal), where the server
waits for everybody (wait), for the fastest of 1.3 times the cohort (over), for
three fifths of the time that a dense round takes on average (deadline), so that
slow clients do as many steps as fit (partial), or steps at every half cohort of
asynchronous reports (fedbuff). Prints a line of JSON for each row and seed,
appended to --out, where rows that are there are not run again, and then the
means of each row.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedms_jax.persistence import run_store
from fedms_jax.report import printed
from fedms_jax.shell import flags, program_cache, simulated, time_report
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config
from fedms_jax.simulation import clock, evaluation, observer, stopping

DEPTHS = {'dense': '--schedule.name=dense', 'sal': '--schedule.name=queue'}
SHARE = 0.6  # of a dense round, that a deadline gives
QUICK = ('--flagfile=launch/presets/smoke.flags',)
MEANS = ('virtual_seconds', 'gigaflops', 'megabytes', 'wasted_flops', 'gini',
         'score', 'fastest_tenth', 'slowest_tenth')  # fmt: skip


def policies(cohort: int, deadline: float, rounds: int) -> dict[str, list[str]]:
  """The flags of each way to wait, at most `rounds` rounds of a cohort."""
  sync = ['--time.policy=synchronous']
  timed = [*sync, f'--time.deadline={deadline:.6g}']
  half = max(1, cohort // 2)
  found = {
    'wait': sync,
    'over': [*sync, '--time.over=1.3'],
    'deadline': [*timed, '--time.least=0.2'],
    'partial': [*timed, '--time.partial'],
  }
  # A step of half a cohort is half a round.
  late = ['--time.policy=fedbuff', f'--time.buffer={half}']
  found['fedbuff'] = [*late, f'--time.concurrency={cohort}']
  return {
    name: [
      *words,
      f'--algorithm.stage1_rounds={rounds * (1 + (name == "fedbuff"))}',
      '--algorithm.stage2_rounds=0',
    ]
    for name, words in found.items()
  }


def measured(config: Config, like: worlds.World | None):
  """(the numbers of a run, the mean seconds of its rounds, its world)."""
  world = worlds.world(config, like)
  records = observer.Recorder()
  simulation = simulated.simulation(
    config, world, run_store.Memory(), observer.Observers(records)
  )
  state = simulation.run()
  scores = evaluation.evaluate(
    simulation, state, evaluation.Scope(config.eval.clients)
  )
  lines = [r for r in records.records if 'depth' in r]
  result = printed.summary(simulation, state, scores, lines, clock.Clock())
  served = world.stages[-1].algorithm.served
  found = time_report.summary(
    config,
    world.data.train.num_clients,
    state.arrivals,
    lines,
    result | {'served': served},
  )
  assert found is not None
  target = stopping.to_target(world.watched.stop, lines)['target']
  total = result['total']
  return (
    {
      'reached': target['reached'],
      'virtual_seconds': target.get('virtual_time'),
      'steps': len(lines),
      'depth': float(np.mean([r['depth'] for r in lines])),
      'gigaflops': total['client_flops'] / 1e9,
      'megabytes': (total['bytes_up'] + total['bytes_down']) / 1e6,
      'wasted_flops': found['wasted_flops'],
      'gini': found['participation_gini'],
      'score': scores['models'][served]['own_mean'],
      'fastest_tenth': found.get('fastest_tenth'),
      'slowest_tenth': found.get('slowest_tenth'),
    },
    float(np.mean([r['virtual_time'] for r in lines])),
    world,
  )


def means(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Means over the seeds of a row; of the seconds those that reached it."""
  out: dict[str, Any] = {
    'mean_of': lines[0]['row'],
    'seeds': len(lines),
    'reached': sum(line['reached'] for line in lines),
  }
  for name in MEANS:
    known = [line[name] for line in lines if line[name] is not None]
    out[name] = float(np.mean(known)) if known else None
  return out


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  words = list(argv)
  cut = words.index('--') if '--' in words else len(words)
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.time', allow_abbrev=False
  )
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--target', type=float, default=0.74)
  parser.add_argument('--rounds', type=int, default=40)
  parser.add_argument('--rows', default='')
  parser.add_argument('--seeds', default='')
  parser.add_argument('--out', default='')
  return parser.parse_args(words[:cut]), words[cut + 1 :]


def main(argv: Sequence[str]) -> int:
  options, own = _options(argv)
  target, rounds = options.target, options.rounds
  base = ['--noprogress', '--algorithm.name=fedit', '--eval.every=1',
          '--partition.name=dirichlet',
          '--stop.metric=eval_pooled']  # fmt: skip
  if options.quick:
    base, target, rounds = [*QUICK, *base], 0.01, 1
  base += [f'--stop.target={target}', *own]
  seeds = options.seeds or ('0' if options.quick else '0,1,2')
  wanted = {name for name in options.rows.split(',') if name}
  if options.quick:
    wanted = wanted or {'wait', 'fedbuff'}
  done: dict[tuple[str, int], dict[str, Any]] = {}
  path = pathlib.Path(options.out) if options.out else None
  if path is not None and path.is_file():
    for text in path.read_text().splitlines():
      line = json.loads(text)
      done[line['row'], line['seed']] = line
  for seed in map(int, seeds.split(',')):
    _seed(seed, base, rounds, wanted, done, path)
  names = dict.fromkeys(name for name, _ in done)
  for name in names:
    print(json.dumps(means([x for (n, _), x in done.items() if n == name])))
  return 0


def _seed(seed: int, base, rounds: int, wanted, done, path) -> None:
  """All rows of a seed, the one first that says what a deadline is."""
  like, deadline = None, None
  for policy in policies(1, 1.0, 1):
    for depth, schedule in DEPTHS.items():
      key = f'{depth}, {policy}', seed
      skipped = (wanted and policy not in wanted) or key in done
      if skipped and (deadline or key[0] != 'dense, wait'):
        continue
      cohort = flags.parse(['fedms', *base]).cohort.size
      words = policies(cohort, deadline or 1.0, rounds)[policy]
      config = flags.parse(['fedms', *base, *words, schedule, f'--seed={seed}'])
      found, took, like = measured(config, like)
      deadline = deadline or SHARE * took
      if skipped:
        continue
      done[key] = {'row': key[0], 'seed': seed, **found}
      text = json.dumps(done[key])
      print(text, flush=True)
      if path is not None:
        with path.open('a') as file:
          file.write(text + '\n')


if __name__ == '__main__':
  program_cache.begin()
  raise SystemExit(main(sys.argv[1:]))
