"""What does a whole run cost, with SAL or dense, with columns kept or not?

    python -m benchmarks.whole_run [--quick] [-- <fedms flags>]

Runs the `fedms` command once per variant, one after another in one session,
and prints one JSON line each, the last ones as ratios to the first variant.
`loss_difference` is the largest difference of a round's training loss to the
first variant: scopes must agree to float32 rounding, schedules need not.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

VARIANTS = {
  'sal, scope run': [],
  'sal, scope round': ['--columns.scope=round'],
  'sal, scope step': ['--columns.scope=step'],
  'dense, scope run': ['--schedule=dense'],
}
QUICK = ['--flagfile=launch/presets/smoke.flags']
COSTS = ('bytes_up', 'bytes_down', 'client_flops', 'simulator_flops')


def measure(flags: list[str]) -> tuple[dict, list[float]]:
  """(costs, training loss of each round) of one run."""
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run(
      [sys.executable, '-m', 'fedms_jax', '--noprogress',
       '--notensorboard', f'--workdir={folder}/run', *flags],
      check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    run = pathlib.Path(folder) / 'run'
    summary = json.loads((run / 'summary.json').read_text())
    lines = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    losses = [line['train_loss'] for line in lines]
  costs = {name: summary['total'][name] for name in COSTS}
  costs |= {k: summary[k] for k in ('compile_seconds', 'run_seconds')}
  served = summary['models'].get('mixture') or summary['models']['global']
  return costs | {'own_mean': served['own_mean']}, losses


def main(argv: list[str]) -> None:
  """Measures all variants."""
  at = argv.index('--') if '--' in argv else len(argv)
  parser = argparse.ArgumentParser(prog='whole_run')
  parser.add_argument('--quick', action='store_true', help='the smoke preset')
  options = parser.parse_args(argv[:at])
  flags = [*(QUICK if options.quick else []), *argv[at + 1 :]]
  first = None
  for name, extra in VARIANTS.items():
    costs, losses = measure([*flags, *extra])
    first = first or (costs, losses)
    pairs = zip(losses, first[1], strict=True)
    row = {'variant': name, **costs}
    row['loss_difference'] = max(abs(a - b) for a, b in pairs)
    row['ratios'] = {
      k: round(costs[k] / v, 3) for k, v in first[0].items() if v
    }
    print(json.dumps(row), flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
