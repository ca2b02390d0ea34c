"""What does a channel that changes nothing cost, and a clock of no time?

    python -m benchmarks.overhead [--quick] [--clients=1000] [--cohort=32]
      [--rounds=20] [--turns=15]

Whole stages of a very small model (FedMS, both stages), so that the host's work
shows, run in turns in one process. Ratios are to `plain`, medians over turns:
`again`, the same once more, says how far off a ratio is by chance; `channel`
has a chain of one identity; `arrivals` are the usual ones, given by hand;
`clock` waits for the cohort on devices of no time, which is asked round by
round, so that nothing of a round is prepared ahead. A run without a channel, or
without arrivals of its own, has no code for them: `elided` says so.
"""

from __future__ import annotations

import argparse
import os

from benchmarks import small_vit, timing

VARIANTS = ('plain', 'again', 'channel', 'arrivals', 'clock')
SIDE, PATCH, WIDTH, ROWS = 8, 4, 16, 4


def main(argv: list[str] | None = None) -> None:
  """Measures the variants in turns and prints a row for each."""
  from fedms_jax.cluster import memory

  parser = argparse.ArgumentParser(prog='overhead')
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--clients', type=int, default=1000)
  parser.add_argument('--cohort', type=int, default=32)
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--turns', type=int, default=15)
  args = parser.parse_args(argv)
  if args.quick:
    args.clients, args.cohort, args.rounds, args.turns = 20, 4, 2, 2
  memory.keep_memory()
  data, start, found = variants(args.clients, args.cohort, args.rounds)
  runs = {
    name: _runner(data, start, stages, args.cohort)
    for name, stages in found.items()
  }
  seconds = timing.in_turns(runs, args.turns)
  rounds = 2 * args.rounds
  for name, each in timing.medians(seconds).items():
    timing.row(
      variant=name,
      milliseconds=1e3 * each / rounds,
      ratio=timing.ratio(seconds, name, 'plain'),
      elided=_elided(found[name]),
    )


def variants(clients: int, cohort: int, rounds: int):
  """(data, roles before the first stage, name -> stages)."""
  from fedms_jax import channel
  from fedms_jax.core.contract import identity
  from fedms_jax.simulation import cohorts
  from fedms_jax.systems import devices, selection
  from fedms_jax.systems.waiting import Waiting, waiting

  small_vit.SHAPES['overhead'] = (2, WIDTH, 2, SIDE, PATCH)
  model = small_vit.backbone('overhead')
  data = small_vit.federation('overhead', clients, ROWS, 1)
  depths = [1] * rounds
  plain = [
    small_vit.stage(algorithm, depths, model.blocks)
    for algorithm in small_vit.algorithms(model)
  ]
  wire = channel.chain(identity())
  usual, waits, passed = [], [], []
  for number, stage in enumerate(plain):
    choice = selection.uniform(0, number, clients)
    clock = waiting(Waiting(cohort), devices.instant(clients), choice)
    given = cohorts.usual(_options(cohort), number, clients)
    usual.append(stage._replace(arrivals=given))
    waits.append(stage._replace(arrivals=clock))
    algorithm = stage.algorithm._replace(channel=wire)
    passed.append(stage._replace(algorithm=algorithm))
  made = (plain, plain, passed, usual, waits)
  found: dict[str, list] = dict(zip(VARIANTS, made, strict=True))
  return data, small_vit.start(model), found


def _options(cohort: int):
  from fedms_jax.simulation.state import Options

  return Options(
    cohort=cohort, batch_size=ROWS, clients='vmap', validation_rows=1
  )


def _runner(data, start, stages, cohort: int):
  """What runs the stages from the start; gives the last roles."""
  from fedms_jax.persistence import run_store
  from fedms_jax.simulation import driver, observer

  def run():
    simulation = driver.Simulation(
      data,
      start,
      stages,
      _options(cohort),
      run_store=run_store.Memory(),
      observer=observer.Silent(),
    )
    return simulation.run().roles.shared

  return run


def _elided(stages) -> bool:
  """Whether nothing stands between clients and server, nor for arrivals."""
  from fedms_jax.core.contract import PLAIN

  return all(
    stage.algorithm.channel is PLAIN and stage.arrivals is None
    for stage in stages
  )


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  main()
