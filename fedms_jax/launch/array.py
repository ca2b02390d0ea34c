"""The points of a sweep as one SLURM job array."""

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Sequence

from fedms_jax.launch import command, grid, slurm
from fedms_jax.persistence.files import write_atomic

JOBS = 'slurm_jobs'  # in sweep.json: job number -> its points, in order


def run(options: argparse.Namespace, sweep, names: Sequence[str]) -> int:
  """Submits the points that are not in the queue already."""
  queued = _queued(sweep.record.get(JOBS, {}))
  for name in queued:
    print(f'launch: {name}: in the queue')
  names = [name for name in names if name not in queued]
  if not names:
    return 0
  program = shlex.split(options.program or command.PROGRAM)
  job = slurm.Job(
    options.name or sweep.root.name,
    sweep.root,
    [*program, *sweep.flags, *sweep.extra],
    names,
    options.jobs,
  )
  text = slurm.script(options, job)
  if options.dry_run:
    print(text, end='')
    return 0
  for name in names:
    (sweep.root / name).mkdir(exist_ok=True)
    flags = '\n'.join(grid.words(sweep.points[name]))
    write_atomic(sweep.root / name / slurm.POINT, flags + '\n')
  number = slurm.submit(text, sweep.root)
  sweep.record[JOBS] = sweep.record.get(JOBS, {}) | {number: names}
  sweep.write()
  print(f'launch: submitted job array {number} of {len(names)} points')
  return 0


def _queued(jobs: dict[str, list[str]]) -> set[str]:
  """The points whose tasks wait or run."""
  found = set()
  for number, names in jobs.items():
    words = ['squeue', '--noheader', '--array', '--format=%K', '--jobs', number]
    try:
      done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
      return found
    # Of a job that is forgotten, squeue knows nothing and fails.
    if done.returncode == 0:
      found |= {names[int(index)] for index in done.stdout.split()}
  return found
