"""A run as a SLURM job: writes a batch script into the workdir, submits it.

    fedms launch slurm --nodes=4 --gpus_per_node=8 --time=24:00:00 \\
      -- --flagfile=... --workdir=...

One process per GPU; without GPUs, one per node. The script can be read,
changed, and submitted by hand with `sbatch`.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from fedms_jax.launch import command
from fedms_jax.persistence.files import write_atomic

SCRIPT = 'job.sbatch'
POINT = 'point.flags'


class Job(NamedTuple):
  """What a batch script starts.

  name: of the job. root: absolute folder of script and logs. run: the words
  of the run without its workdir. points: names of folders below `root`, one
  per task of an array, each with its flags in point.flags; none: one job,
  with `root` as its workdir. parallel: most tasks of the array at a time; 0:
  all.
  """

  name: str
  root: pathlib.Path
  run: Sequence[str]
  points: Sequence[str] = ()
  parallel: int = 0


def main(argv: Sequence[str]) -> int:
  """Runs the launcher; gives the exit code."""
  own, flags = command.split(argv)
  options = _parser().parse_args(own)
  root = pathlib.Path(command.workdir(command.check(flags))).absolute()
  run = [*shlex.split(options.program), *flags]
  text = script(options, Job(options.name or root.name, root, run))
  if options.dry_run:
    print(text, end='')
    return 0
  print(f'launch: submitted job {submit(text, root)}; see {root}')
  return 0


def _parser() -> argparse.ArgumentParser:
  options = command.parser('launch slurm', 'Submits a run to SLURM.')
  command.add_job(options)
  command.add_program(options)
  add_options(options)
  return options


def add_options(options: argparse.ArgumentParser) -> None:
  """What SLURM alone has; `fedms launch sweep` has it, too."""
  add = options.add_argument_group('SLURM').add_argument
  add('--nodes', type=int, default=1, help='nodes of a run')
  add('--gpus_per_node', type=int, default=0, help='one process for each')
  add('--processes_per_node', type=int, default=1, help='on nodes without GPUs')
  add('--cpus_per_process', type=int, default=0, help="0: SLURM's default")
  add('--time', default='', help='time limit, such as 24:00:00')
  add('--partition', default='', help='where it runs')
  add('--account', default='', help='who pays')
  add(
    '--sbatch',
    action='append',
    default=[],
    metavar='OPTION',
    help='a further option of sbatch, such as --sbatch=--mem=64G; repeatable',
  )
  add(
    '--setup',
    action='append',
    default=[],
    metavar='LINE',
    help='a line of shell before the run, such as "module load cuda"',
  )


def script(options: argparse.Namespace, job: Job) -> str:
  """The batch script.

  Raises:
    ValueError: options that cannot be, or paths that SLURM cannot take.
  """
  _check(options, job)
  parts = [
    _HEAD.format(path=job.root / SCRIPT),
    *(f'#SBATCH {line}\n' for line in _directives(options, job)),
    _SIGNAL.format(grace=options.grace),
    f'\ncd {shlex.quote(os.getcwd())} || exit 1\n',
    *(f'{line}\n' for line in options.setup),
    _array(job) if job.points else f'\nworkdir={shlex.quote(str(job.root))}\n',
    _RUN.format(
      run=_words(job.run),
      point='\n  --flagfile="$workdir/point.flags"' if job.points else '',
      cpus=f' --cpus-per-task={options.cpus_per_process}'
      if options.cpus_per_process
      else '',
    ),
    _END.format(
      restarts=options.max_restarts,
      # The number of one task can be that of the whole array.
      job='${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID'
      if job.points
      else '$SLURM_JOB_ID',
    ),
  ]
  return ''.join(parts)


def submit(text: str, root: pathlib.Path) -> str:
  """Writes the script into `root` and submits it; gives the job's number.

  Raises:
    ValueError: SLURM is not there, or refuses the job.
  """
  root.mkdir(parents=True, exist_ok=True)
  write_atomic(root / SCRIPT, text)
  words = ['sbatch', '--parsable', str(root / SCRIPT)]
  try:
    done = subprocess.run(words, capture_output=True, text=True)
  except FileNotFoundError:
    raise ValueError(
      'there is no sbatch here; run this on a login node of the cluster. The '
      f'script is {root / SCRIPT}.'
    ) from None
  if done.returncode:
    raise ValueError(f'{shlex.join(words)}: {done.stderr.strip()}')
  return done.stdout.strip().partition(';')[0]  # job;cluster


def _check(options: argparse.Namespace, job: Job) -> None:
  """Refuses what SLURM would not, or only after hours in the queue."""
  command.check_options(
    options,
    nodes=1,
    processes_per_node=1,
    grace=1,
    gpus_per_node=0,
    cpus_per_process=0,
    max_restarts=0,
  )
  for option in options.sbatch:
    if not option.startswith('-'):
      raise ValueError(
        f'--sbatch={option!r} is no option of sbatch; write it with its '
        'dashes, as in --sbatch=--mem=64G.'
      )
  if options.gpus_per_node and options.processes_per_node > 1:
    raise ValueError(
      f'--processes_per_node={options.processes_per_node} is for nodes '
      'without GPUs; with --gpus_per_node there is one process per GPU.'
    )
  limit = seconds(options.time) if options.time else None
  if limit is not None and limit <= options.grace:
    raise ValueError(
      f'--time={options.time} is not longer than --grace={options.grace} '
      'seconds: the run would stop as soon as it starts. Give it more time.'
    )
  if re.search(r'[\\"]', str(job.root)) or not str(job.root).isprintable():
    raise ValueError(
      f'{str(job.root)!r} cannot stand in a batch script; allowed: folders '
      'without quotes, backslashes and line breaks.'
    )


def seconds(text: str) -> int | None:
  """SLURM's time limits in seconds: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM,
  D-HH:MM:SS; None for no limit.

  Raises:
    ValueError: it is none of them.
  """
  if text.lower() in ('0', 'infinite', 'unlimited'):
    return None
  match = re.fullmatch(r'(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?', text)
  if match is None:
    raise ValueError(
      f'--time={text!r} is no time limit; write MM, HH:MM:SS or D-HH:MM:SS.'
    )
  days, *rest = match.groups()
  numbers = [int(n) for n in rest if n is not None]
  if days is None and len(numbers) < 3:  # minutes come first
    numbers = [0, *numbers]
  hours, minutes, second = (*numbers, 0, 0)[:3]
  return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + second


def _directives(options: argparse.Namespace, job: Job) -> list[str]:
  """The options of sbatch."""
  tasks = options.gpus_per_node or options.processes_per_node
  log = '%A_%a' if job.points else '%j'
  root = str(job.root).replace('%', '%%')
  found = [
    f'--job-name={shlex.quote(job.name)}',
    f'--nodes={options.nodes}',
    f'--ntasks-per-node={tasks}',
    f'--output="{root}/slurm-{log}.log"',
    '--open-mode=append',
  ]
  if job.points:
    most = f'%{job.parallel}' if job.parallel else ''
    found.append(f'--array=0-{len(job.points) - 1}{most}')
  for name, value in (
    ('gpus-per-node', options.gpus_per_node),
    ('cpus-per-task', options.cpus_per_process),
    ('time', options.time),
    ('partition', options.partition),
    ('account', options.account),
  ):
    if value:
      found.append(f'--{name}={shlex.quote(str(value))}')
  return [*found, *options.sbatch]


def _words(words: Sequence[str]) -> str:
  """Words of a command as the lines of a bash array."""
  return ''.join(f'\n  {shlex.quote(word)}' for word in words)


def _array(job: Job) -> str:
  """Bash that finds the workdir of a task of the array."""
  names = ''.join(f'\n  {shlex.quote(name)}' for name in job.points)
  return (
    f'\n# What varies is the name of a folder and the content of its {POINT}.'
    f'\npoints=({names}\n)\nworkdir={shlex.quote(str(job.root))}'
    '/${points[$SLURM_ARRAY_TASK_ID]}\n'
  )


_HEAD = """\
#!/bin/bash
# A run of fedms, written by launch/slurm.py. By hand: sbatch '{path}'
"""

_SIGNAL = """\
# Every process gets this signal {grace} seconds before the time is up (SLURM
# may send it a minute earlier); the run saves after the round at hand.
#SBATCH --signal=USR1@{grace}
# A job whose node failed, or that was preempted, may start again.
#SBATCH --requeue
"""

_RUN = """
# --resume: a job that was put back goes on; in an empty folder it begins.
run=({run}{point}
  --workdir="$workdir"
  --resume
)

# srun tells the largest exit code of all processes. What cannot be mended by
# starting again must win over the 75 (restart me) of the peers: a user's
# mistake becomes 102, a crash 101. A process that was killed can be mended.
# The trap lets this shell outlive a signal that the run itself answers.
one_process() {{
  trap : TERM USR1
  "$@"
  local code=$?
  case $code in
    0) return 0 ;;
    2) return 102 ;;
    75) return 75 ;;
  esac
  (( code > 128 )) && return 75
  return 101
}}
export -f one_process

mkdir -p "$workdir/logs" || exit 1
# The peers of a lost process end by themselves (--distributed.timeout).
srun --kill-on-bad-exit=0 --open-mode=append{cpus} \\
  --output="${{workdir//%/%%}}/logs/process-%t.log" \\
  bash -c 'one_process "$@"' -- "${{run[@]}}"
code=$?
"""

_END = """
echo "$(date): job $SLURM_JOB_ID, start ${{SLURM_RESTART_COUNT:-0}}: code $code"
case $code in
  0) exit 0 ;;
  101) echo "It crashed; see $workdir/logs."; exit 1 ;;
  102) echo "It needs you; see $workdir/logs."; exit 2 ;;
esac
if (( code != 75 && code <= 128 )); then
  echo 'The processes could not be started.'
  exit 1
fi
if (( ${{SLURM_RESTART_COUNT:-0}} >= {restarts} )); then
  echo 'It has started again too often (--max_restarts).'
  exit 75
fi
scontrol requeue "{job}"
exit 75
"""


if __name__ == '__main__':
  sys.exit(command.run(main))
