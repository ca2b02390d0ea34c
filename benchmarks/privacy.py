"""How much accuracy does an epsilon cost?

    python -m benchmarks.privacy [--quick] [--methods=fedms,ffa_lora,...] \\
      [--epsilons=none,8,2] [--seeds=0..2] [--out=FOLDER] -- <fedms flags>

Runs methods without privacy, and at noise that is found for an epsilon of a
stated population of 100,000 clients of which 1,000 are in a round; without
that, the few clients of a simulation would need noise that leaves nothing.
All rows take blocks by the round (--schedule.name=linear), for no score may be
told. Writes results.csv, results.parquet, report.html and table.md into --out.
A second start goes on where the first was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import search_and_seeds
from benchmarks.contest import Entry, Flags
from fedms_jax.launch import command

POPULATION, COHORT = 100_000, 1_000
NONE = 'none'  # of an epsilon
EPSILONS, QUICK = (NONE, '8', '2', '0.5'), (NONE, '2')


def methods(rounds: int) -> dict[str, tuple[Flags, str]]:
  """The flags of each method, and a line on it. rounds: of both stages."""
  return {
    'fedms': (
      {'algorithm.name': 'fedms'},
      'both stages at the same noise',
    ),
    'fedit': ({'algorithm.name': 'fedit'}, 'A and B averaged'),
    'ffa_lora': (
      {'algorithm.name': 'ffa_lora'},
      'A frozen: half of the coordinates, and no product of two noises',
    ),
    'gate': (
      {
        'algorithm.name': 'fedms',
        'algorithm.stage1_rounds': '0',
        'algorithm.stage2_rounds': str(rounds),
      },
      'stage 2 of FedMS alone: what is sent is the gate',
    ),
  }


def entries(
  names: Sequence[str], epsilons: Sequence[str], rounds: int
) -> list[Entry]:
  """The rows: each method at each epsilon."""
  known, found = methods(rounds), []
  for name in names:
    if name not in known:
      raise ValueError(
        f'--methods has {name!r}, which is none. Allowed: {", ".join(known)}.'
      )
    flags, note = known[name]
    for epsilon in epsilons:
      said = 'not private' if epsilon == NONE else f'epsilon {epsilon}'
      own = flags | {'schedule.name': 'linear', 'cohort.sampling': 'poisson'}
      if epsilon != NONE:
        own |= _private(epsilon)
      found.append(Entry(f'{name}, {said}', own, note))
  return found


def _private(epsilon: str) -> Flags:
  try:
    if not float(epsilon) > 0:
      raise ValueError
  except ValueError:
    raise ValueError(
      f'--epsilons has {epsilon!r}, which is no epsilon; write '
      '--epsilons=none,8,2.'
    ) from None
  return {
    'privacy.mode': 'central',
    'privacy.clip': '0.5',
    'privacy.epsilon': epsilon,
    'privacy.population': str(POPULATION),
    'privacy.population_cohort': str(COHORT),
  }


def main(argv: Sequence[str], runner=None) -> int:
  """Runs the benchmark; gives the exit code."""
  own, flags = command.split(argv)
  parser = search_and_seeds.parser('privacy', 'Accuracy against epsilon.')
  parser.add_argument(
    '--methods', default='', help='rows, such as fedms,gate (empty: all)'
  )
  parser.add_argument(
    '--epsilons',
    default='',
    help=f'such as none,2 (empty: {",".join(EPSILONS)})',
  )
  options = parser.parse_args(own)
  base = [*(search_and_seeds.QUICK if options.quick else []), *flags]
  config = command.check(base)
  rounds = config.algorithm.stage1_rounds + config.algorithm.stage2_rounds
  names = _words(options.methods) or list(methods(rounds))
  epsilons = _words(options.epsilons)
  epsilons = epsilons or list(QUICK if options.quick else EPSILONS)
  rows = entries(names, epsilons, rounds)
  title = f'Accuracy against epsilon on {config.data.source}'
  return search_and_seeds.run(options, base, rows, title, runner)


def _words(text: str) -> list[str]:
  return [word.strip() for word in text.split(',') if word.strip()]


if __name__ == '__main__':
  sys.exit(command.run(main))
