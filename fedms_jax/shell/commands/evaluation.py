"""`fedms eval`: the models of a workdir, finished or running, evaluated now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedms_jax.persistence.snapshot import Snapshot
from fedms_jax.report import attacked, printed
from fedms_jax.shell import flags, language, program_cache, simulated
from fedms_jax.shell import run as runner
from fedms_jax.shell import world as worlds
from fedms_jax.simulation import handover, observer


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Prints the scores of the newest checkpoint; nothing is written."""
  config, _ = flags.parse_for_workdir(words, extra, free='eval')
  program_cache.begin()
  snapshot = Snapshot(config.workdir)
  try:
    world = worlds.world(config)
    runner.check_shares(config, world)
    watch = observer.Observers()
    simulation = simulated.simulation(config, world, snapshot, watch)
    state = snapshot.restore(simulation)
    scores = runner.evaluated(config, world, simulation, state)
    language.add_bits(config, world, simulation.federation.pooled, scores)
  finally:
    snapshot.close()
  stage = simulation.stages[state.stage]
  task, rounds = stage.algorithm.task, handover.rounds(simulation.stages, state)
  print(f'{stage.name} stage, after {state.round} of {rounds} rounds')
  print('\n'.join(printed.scores(scores | printed.reading(task))))
  print(attacked.text(scores), end='')
  return 0
