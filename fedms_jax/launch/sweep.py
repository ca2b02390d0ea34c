"""A sweep: one run per point of a grid, each in a folder of its own.

    fedms launch sweep --backend=slurm --grid 'partition.alpha=0.1,0.3,1' \\
      --grid 'seed=0..4' -- --workdir=/runs/sweep --flagfile=...
    fedms launch sweep --collect /runs/sweep

Run again, it starts only what is missing or failed; a larger grid adds
points. --collect makes a table of all that is finished.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedms_jax.launch import (
  array,
  command,
  grid,
  kubernetes,
  pods,
  pool,
  slurm,
  table,
)
from fedms_jax.persistence import files, lock, status
from fedms_jax.shell import flags as fedms_flags
from fedms_jax.shell.config import Config

RECORD = 'sweep.json'
BACKENDS = {'local': pool.run, 'slurm': array.run, 'kubernetes': pods.run}


class Sweep(NamedTuple):
  """A sweep in its folder.

  root: absolute. flags: what all points share. extra: more flags for this
  start alone, such as --break_lock. points: flags of each point, by the name
  of its folder. record: what sweep.json says beside that: what a back-end
  has to remember.
  """

  root: pathlib.Path
  flags: list[str]
  extra: list[str]
  points: dict[str, grid.Point]
  record: dict[str, Any]

  def words(self, name: str) -> list[str]:
    """The flags of a point."""
    point = grid.words(self.points[name])
    folder = f'--workdir={self.root / name}'
    return [*self.flags, *point, *self.extra, folder, '--resume']

  def write(self) -> None:
    """Writes sweep.json."""
    self.root.mkdir(parents=True, exist_ok=True)
    content = {'flags': self.flags, 'points': self.points} | self.record
    files.write_atomic(self.root / RECORD, json.dumps(content, indent=2) + '\n')


def main(argv: Sequence[str]) -> int:
  """Runs the launcher; gives the exit code."""
  own, flags = command.split(argv)
  options = _parser().parse_args(own)
  if options.collect:
    return collect(pathlib.Path(options.collect), options.output)
  command.check_options(
    options, jobs=0, processes=1, gpus_per_process=0, grace=1, max_restarts=0
  )
  config = command.check(flags)
  root = pathlib.Path(command.workdir(config)).absolute()
  sweep = _plan(root, flags, grid.points(options.grid, flags))
  todo = [name for name in sweep.points if _to_start(sweep.root / name, config)]
  if not todo:
    print('launch: nothing is left to start')
    return 0
  if not options.dry_run:
    sweep.write()
  return BACKENDS[options.backend](options, sweep, todo)


def _parser() -> argparse.ArgumentParser:
  options = command.parser('launch sweep', 'Runs a grid of flags.')
  add = options.add_argument
  add('--backend', default='local', choices=BACKENDS, help='where it runs')
  add(
    '--grid',
    action='append',
    default=[],
    metavar='NAME=VALUES',
    help='values of a flag, 0.1,0.3,1 or 0..4; repeatable: all combinations',
  )
  add(
    '--jobs',
    type=int,
    default=0,
    help='most points at a time (0: one on this machine, all on SLURM)',
  )
  add('--collect', default='', help='folder of a sweep: make its table')
  add(
    '--output',
    default='',
    help='file of the table, .csv or .parquet (empty: table.csv in the folder)',
  )
  command.add_job(options)
  add('--program', default='', help='command line of a process')
  command.add_processes(options, default=1)
  slurm.add_options(options)
  kubernetes.add_options(options)
  return options


def _plan(
  root: pathlib.Path, flags: list[str], points: dict[str, grid.Point]
) -> Sweep:
  """The sweep of a folder: the points it has, and new ones.

  Raises:
    ValueError: the folder holds a sweep of other flags.
  """
  names = [word.lstrip('-').partition('=')[0] for word in flags]
  pairs = list(zip(names, flags, strict=True))
  shared = [w for name, w in pairs if name not in fedms_flags.PER_COMMAND]
  extra = [
    w
    for name, w in pairs
    if name in fedms_flags.PER_COMMAND and name != 'workdir'
  ]
  if not (root / RECORD).exists():
    return Sweep(root, shared, extra, points, {})
  old = load(root)
  if old.flags != shared:
    raise ValueError(
      f'{root} holds a sweep with other flags:\n'
      f'  the folder: {shlex.join(old.flags)}\n'
      f'  this sweep: {shlex.join(shared)}\n'
      'Choose another folder, or give the same flags; what varies goes into '
      '--grid.'
    )
  return old._replace(extra=extra, points=old.points | points)


def load(root: pathlib.Path) -> Sweep:
  """The sweep of a folder.

  Raises:
    ValueError: there is none in it.
  """
  try:
    record = files.read_json(root / RECORD)
  except FileNotFoundError:
    raise ValueError(
      f'{root} holds no sweep: it has no {RECORD}. Give the folder that was '
      '--workdir of the sweep.'
    ) from None
  return Sweep(root, record.pop('flags'), [], record.pop('points'), record)


def _state(folder: pathlib.Path) -> str:
  """How the run of a point stands, see `Status.state`; 'missing' without."""
  if not (folder / 'flags.txt').exists():
    held = lock.holder(folder)  # it may be reading its data
    return 'missing' if held is None or held[1] is False else 'running'
  return status.read(folder).state


def _to_start(folder: pathlib.Path, config: Config) -> bool:
  """Whether a point is missing or failed; says of others what they are."""
  state = _state(folder)
  if state == 'running elsewhere' and config.break_lock:
    return True
  notes = {
    'finished': 'finished',
    'running': 'running',
    'running elsewhere': 'held by another host; if nothing runs there any '
    'more, add --break_lock after --',
  }
  if state in notes:
    print(f'launch: {folder.name}: {notes[state]}')
  return state not in notes


def collect(root: pathlib.Path, output: str) -> int:
  """Writes the table of a sweep; says what is missing."""
  sweep = load(root)
  found, missing = table.rows(root, sweep.points)
  for name in missing:
    print(f'launch: no result of {name}: {_state(root / name)}')
  path = pathlib.Path(output) if output else root / 'table.csv'
  if found:
    table.write(path, found)
    print(f'launch: {len(found)} of {len(sweep.points)} points in {path}')
  return 0


if __name__ == '__main__':
  sys.exit(command.run(main))
