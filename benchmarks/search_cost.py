"""What does a search of learning rates save where its runs share programs?

    python -m benchmarks.search_cost [--quick] [--methods=fedit,fedms]
      [--rates=1e-3,3e-3,1e-2] [--turns=3] [-- <fedms flags>]

Runs a method at each rate, one after another, in two ways that take turns: as
they are, a rate being an input of each round; and with all programs forgotten
before each rate, as if it were a constant of them. Data, model and what the
server trains first are made before. Nothing compiled is read from disk.
`ratio` is that of the seconds of all rates, the median over turns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pathlib
import sys
import tempfile
from typing import Any

import jax

from benchmarks import timing
from benchmarks.search_and_seeds import QUICK
from benchmarks.shared_runs import SharedRuns
from fedms_jax.launch import command
from fedms_jax.shell import run as simulation


def main(argv: list[str]) -> None:
  """Measures all methods."""
  own, flags = command.split(argv)
  parser = argparse.ArgumentParser(prog='search_cost')
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--methods', default='fedit,fedms')
  parser.add_argument('--rates', default='1e-3,3e-3,1e-2')
  parser.add_argument('--turns', type=int, default=3)
  args = parser.parse_args(own)
  if args.quick:
    args.methods, args.rates, args.turns = 'fedit', '1e-3,3e-3', 1
  rates = args.rates.split(',')
  jax.config.update('jax_enable_compilation_cache', False)
  base = [*(QUICK if args.quick else []), *flags]
  with tempfile.TemporaryDirectory() as folder:
    for method in args.methods.split(','):
      words = [*base, f'--algorithm.name={method}']
      _measured(words, method, rates, args.turns, pathlib.Path(folder))


def _measured(words, method: str, rates, turns: int, folder) -> None:
  """Prints the row of a method."""
  shared: Any = SharedRuns(folder)
  shared.prepare(command.check(words))

  def search(apart: bool):
    jax.clear_caches()
    for number, rate in enumerate(rates):
      if apart and number:
        jax.clear_caches()
      told = [*words, f'--client.learning_rate={rate}', '--noprogress']
      with contextlib.redirect_stdout(io.StringIO()):
        simulation.run(command.check(told), shared)

  seconds = timing.in_turns(
    {'shared': lambda: search(False), 'apart': lambda: search(True)},
    turns,
    warm_up=0,
  )
  found = timing.medians(seconds)
  timing.row(
    method=method,
    rates=len(rates),
    shared_seconds=found['shared'],
    apart_seconds=found['apart'],
    ratio=timing.ratio(seconds, 'shared', 'apart'),
  )


if __name__ == '__main__':
  main(sys.argv[1:])
