"""How much accuracy does an epsilon cost?

    python -m benchmarks.privacy [--quick] [--methods=fedms,ffa_lora,...] \\
      [--epsilons=none,8,2] [--seeds=0..2] [--audit=128] [--out=FOLDER] -- \\
      <fedms flags>

Runs methods without privacy, and at noise that is found for an epsilon of a
stated population of 100,000 clients of which 1,000 are in a round; without
that, the few clients of a simulation would need noise that leaves nothing.
All rows take blocks by the round (--schedule.name=linear), for no score may be
told. Beside the accounted epsilon stands what an audit shows at least: of a run
of canaries alone (`fedms audit`), of the method's first stage at the same
epsilon, delta and share of the clients in a round, as `audited` has it. Writes
results.csv, results.parquet, report.html and table.md into --out. A second
start goes on where the first was killed.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Sequence

from benchmarks import search_and_seeds
from benchmarks.contest import Entry, Flags
from fedms_jax.launch import command
from fedms_jax.persistence.files import write_atomic
from fedms_jax.report import audited as told
from fedms_jax.shell import config as config_lib
from fedms_jax.shell.config import Config
from fedms_jax.systems import privacy as accounts

POPULATION, COHORT = 100_000, 1_000
NONE = 'none'  # of an epsilon
EPSILONS, QUICK = (NONE, '8', '2', '0.5'), (NONE, '2')
CLIP, CANARIES, FEWEST = 0.5, 128, 8


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
    'privacy.clip': f'{CLIP:g}',
    'privacy.epsilon': epsilon,
    'privacy.population': str(POPULATION),
    'privacy.population_cohort': str(COHORT),
  }


def audited(config: Config, canaries: int) -> Config:
  """The run that is audited in place of a row's: all of its clients are
  canaries, as many as that of a stated population cannot be.

  Epsilon, delta, rounds and the chance to be in a round are the row's, and so
  the noise is that of this run's own clients; blocks are dense, and a client
  takes one step, of which nothing is sent. What is not private is clipped,
  without noise.
  """
  flat, usual = config_lib.values(config), config_lib.values(Config())
  calm = ('partition.', 'eval.', 'stop.', 'pretrain.', 'privacy.population')
  flat |= {k: v for k, v in usual.items() if k.startswith(calm)}
  share = config.cohort.size / config.partition.num_clients
  flat |= {
    'workdir': '',
    'resume': False,
    'schedule.name': 'dense',
    'partition.name': 'iid',
    'partition.num_clients': canaries,
    'partition.unseen_clients': 0,
    'partition.min_rows': 3,
    'pretrain.epochs': 0,
    'cohort.size': max(1, round(share * canaries)),
    'client.steps': 1,
    'privacy.mode': 'central',
    'privacy.clip': config.privacy.clip if config.privacy.on else CLIP,
    'privacy.delta': config.privacy.delta or accounts.usual_delta(POPULATION),
  }
  made = config_lib.from_values(flat)
  config_lib.validate(made)
  return made


def auditor(canaries: int, seed: str) -> Callable[[Config, pathlib.Path], None]:
  """What audits the row of a finished run, once, and keeps it in its folder.
  seed: of the runs that are audited."""

  def audit(config: Config, folder: pathlib.Path) -> None:
    path = folder / told.FILE
    whole = folder.parent.name == 'runs'  # no try of a search
    if not whole or str(config.seed) != seed or path.exists():
      return
    from fedms_jax.shell import audits  # lazy: it imports JAX

    try:
      found = audits.canaries(audited(config, canaries), canaries)
    except ValueError as error:  # a method that has no audit has no cell
      print(f'{folder.name}: no audit: {error}', flush=True)
      return
    print(f'{folder.name}: {told.lines(found)[1].strip()}', flush=True)
    write_atomic(path, json.dumps({'canaries': found}, indent=2) + '\n')

  return audit


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
  parser.add_argument(
    '--audit',
    type=int,
    default=CANARIES,
    help='canaries of the audit of each row, on its first seed (0: no audit)',
  )
  options = parser.parse_args(own)
  if options.audit and options.audit < FEWEST:
    raise ValueError(
      f'--audit={options.audit} is not allowed; allowed: 0, or at least '
      f'{FEWEST} canaries.'
    )
  base = [*(search_and_seeds.QUICK if options.quick else []), *flags]
  config = command.check(base)
  rounds = config.algorithm.stage1_rounds + config.algorithm.stage2_rounds
  names = _words(options.methods) or list(methods(rounds))
  epsilons = _words(options.epsilons)
  epsilons = epsilons or list(QUICK if options.quick else EPSILONS)
  rows = entries(names, epsilons, rounds)
  title = f'Accuracy against epsilon on {config.data.source}'
  after = None
  if options.audit:
    first = search_and_seeds.rules(options).seeds[0]
    after = auditor(options.audit, first)
  return search_and_seeds.run(options, base, rows, title, runner, after)


def _words(text: str) -> list[str]:
  return [word.strip() for word in text.split(',') if word.strip()]


if __name__ == '__main__':
  sys.exit(command.run(main))
