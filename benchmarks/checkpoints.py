"""What does it cost to keep a run: a workdir, and checkpoints in it?

    python -m benchmarks.checkpoints [--quick] [--rounds=60] [--turns=5]
      [-- <fedms flags>]

Whole runs of the smoke preset with so many rounds a stage, each in a process
of its own, in turns: without a workdir, with one as it is by default, without
TensorBoard, and with a checkpoint each round. `ratio` is to the run without a
workdir, the median over turns; `processor` the same of the processor's time,
which neighbors on the machine disturb less. `checkpoint` has the seconds of
one save: until rounds go on, and until it is on the disk.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import timing

PRESET = '--flagfile=launch/presets/smoke.flags'
KEPT = {
  'no workdir': None,
  'workdir': [],
  'no tensorboard': ['--notensorboard'],
  'each round': ['--checkpoint.every=1'],
}


def main(argv: list[str]) -> None:
  """Measures all variants."""
  at = argv.index('--') if '--' in argv else len(argv)
  parser = argparse.ArgumentParser(prog='checkpoints')
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--rounds', type=int, default=60)
  parser.add_argument('--turns', type=int, default=5)
  args = parser.parse_args(argv[:at])
  if args.quick:
    args.rounds, args.turns = 2, 1
  flags = [
    PRESET,
    f'--algorithm.stage1_rounds={args.rounds}',
    f'--algorithm.stage2_rounds={args.rounds}',
    *argv[at + 1 :],
  ]
  processor = {name: [] for name in KEPT}

  def variant(name: str):
    def run():
      before = _processor()
      _run(flags, KEPT[name])
      processor[name].append(_processor() - before)

    return run

  warm_up = 1  # fills the cache of compiled programs
  seconds = timing.in_turns(
    {name: variant(name) for name in KEPT}, args.turns, warm_up
  )
  first = next(iter(KEPT))
  counted = {name: found[warm_up:] for name, found in processor.items()}
  for name, median in timing.medians(seconds).items():
    timing.row(
      variant=name,
      rounds=2 * args.rounds,
      seconds=median,
      ratio=timing.ratio(seconds, name, first),
      processor=timing.ratio(counted, name, first),
    )
  timing.row(checkpoint=_save(4 if args.quick else 64))


def _run(flags: list[str], kept: list[str] | None) -> None:
  with tempfile.TemporaryDirectory() as folder:
    where = [] if kept is None else [f'--workdir={folder}/run', *kept]
    subprocess.run(
      [sys.executable, '-m', 'fedms_jax', '--noprogress', *flags, *where],
      check=True,
      stdout=subprocess.DEVNULL,
    )


def _processor() -> float:
  """Processor seconds of all processes that have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def _save(megabytes: int) -> dict[str, float]:
  """Medians of one save of so many bytes."""
  from fedms_jax.persistence.checkpoint import Checkpointer

  arrays = {'shared': {'x': np.ones(megabytes << 18, np.float32)}}
  begun, done = [], []
  with tempfile.TemporaryDirectory() as folder:
    saver = Checkpointer(pathlib.Path(folder), 2)
    for step in range(5):
      start = time.perf_counter()
      saver.save(step, arrays, {})
      begun.append(time.perf_counter() - start)
      saver.wait()
      done.append(time.perf_counter() - start)
    saver.close()
  found = {'begun': begun, 'done': done}
  medians = {name: statistics.median(times) for name, times in found.items()}
  return {'megabytes': float(megabytes), **medians}


if __name__ == '__main__':
  main(sys.argv[1:])
