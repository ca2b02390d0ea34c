"""How all benchmarks here measure: side by side, in turns, by medians.

Other work on the machine slows all variants of a turn alike, so that their
ratio stands where the seconds do not. Nothing here fails on a slow machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import jax


def in_turns(
  variants: Mapping[str, Callable[[], object]], turns: int, warm_up: int = 2
) -> dict[str, list[float]]:
  """Seconds of each variant in each turn.

  variants: each does one unit of work; arrays that it returns are waited for.
  warm_up: turns that are not counted: they compile. Every second turn goes
  backwards, so that nobody always follows the same neighbor.
  """
  seconds: dict[str, list[float]] = {name: [] for name in variants}
  for turn in range(-warm_up, turns):
    for name in list(variants)[:: -1 if turn % 2 else 1]:
      start = time.perf_counter()
      jax.block_until_ready(variants[name]())
      if turn >= 0:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
  """The median of each variant."""
  return {name: statistics.median(turns) for name, turns in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], of: str, to: str) -> float:
  """The median over turns of `of` / `to`: only neighbors are compared."""
  pairs = zip(seconds[of], seconds[to], strict=True)
  return statistics.median(a / b for a, b in pairs)


def row(**values) -> None:
  """Prints a JSON line; numbers get four significant digits."""

  def short(value):
    if isinstance(value, dict):
      return {k: short(v) for k, v in value.items()}
    return float(f'{value:.4g}') if isinstance(value, float) else value

  print(json.dumps(short(values)), flush=True)


def cores() -> int:
  """CPU cores that this process may use: as many threads get all variants."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


class Worker:
  """One unit of work at a time in a process of its own, maybe of another
  interpreter: that of a library which does not go with ours.

  The script says `ready` on a line, then does a unit for each line that it
  reads, and says `done`.
  """

  def __init__(self, python: str, script: str | os.PathLike, **options):
    flags = [f'--{name}={value}' for name, value in options.items()]
    threads = {'OMP_NUM_THREADS': str(cores())}
    self._process = subprocess.Popen(
      [python, script, *flags],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=os.environ | threads,
      text=True,
    )
    assert self._process.stdin and self._process.stdout  # they are pipes
    self._stdin, self._stdout = self._process.stdin, self._process.stdout
    self._wait('ready')

  def __call__(self) -> None:
    """Does one unit of work."""
    self._stdin.write('\n')
    self._stdin.flush()
    self._wait('done')

  def close(self) -> None:
    """Lets the process end."""
    self._stdin.close()
    self._process.wait()

  def _wait(self, word: str) -> None:
    for line in self._stdout:
      if line.strip() == word:
        return
      print(line, end='', file=sys.stderr)
    raise RuntimeError(
      f'{self._process.args} ended with code {self._process.wait()}.'
    )
