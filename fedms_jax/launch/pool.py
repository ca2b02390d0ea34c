"""The points of a sweep on this machine, a bounded number at a time."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from fedms_jax.launch import command
from fedms_jax.launch.children import Children


def run(options: argparse.Namespace, sweep, names: Sequence[str]) -> int:
  """Runs points until all have ended; gives the exit code of the sweep.

  A signal is passed on to all points that run; no other is started then.
  """
  if options.dry_run:
    for name in names:
      print(shlex.join(_command(options, sweep.words(name))))
    return 0
  most = options.jobs or 1
  waiting, running, codes = list(names), {}, []
  with Children() as children:
    while running or waiting:
      if children.stopping and waiting:
        print(f'launch: {len(waiting)} points were not started')
        waiting.clear()
      while waiting and len(running) < most:
        slot = next(i for i in range(most) if i not in running)
        name = waiting.pop(0)
        running[slot] = name, _start(children, options, sweep, name, slot)
      for slot, (name, child) in list(running.items()):
        if child.poll() is not None:
          codes.append(child.returncode)
          del running[slot]
          print(f'launch: {name}: {command.ending(child.returncode)}')
      time.sleep(0.05)
  return command.verdict(codes)


def _start(children, options, sweep, name: str, slot: int) -> subprocess.Popen:
  logs = sweep.root / name / 'logs'
  logs.mkdir(parents=True, exist_ok=True)
  words = _command(options, sweep.words(name))
  return children.start(words, logs / 'point.log', _environment(options, slot))


def _command(options: argparse.Namespace, flags: list[str]) -> list[str]:
  """The command line of a point, of one process or several."""
  program = options.program or command.PROGRAM
  if options.processes == 1:
    return [*shlex.split(program), *flags]
  return [
    *(sys.executable, '-m', 'fedms_jax.launch.local'),
    f'--program={program}',
    f'--processes={options.processes}',
    f'--gpus_per_process={options.gpus_per_process}',
    '--',
    *flags,
  ]


def _environment(options: argparse.Namespace, slot: int) -> dict[str, str]:
  """The environment of a point: its own GPUs, if any were asked for."""
  count = options.processes * options.gpus_per_process
  if not count:
    return dict(os.environ)
  mine = range(slot * count, (slot + 1) * count)
  return os.environ | {'CUDA_VISIBLE_DEVICES': ','.join(map(str, mine))}
