"""Several JAX processes on this machine, as one run.

    fedms launch local --processes=2 -- --flagfile=... --workdir=...

Process 0 is seen in the terminal; every process has a log file. If one dies,
the others have --distributed.timeout seconds to notice and end; then they
are stopped.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

from fedms_jax.launch import command
from fedms_jax.launch.children import Children

# Seconds to end after a loss was noticed, and after being asked to.
MARGIN = 15.0


def main(argv: Sequence[str]) -> int:
  """Runs the launcher; gives the exit code, see launch/README.md."""
  own, flags = command.split(argv)
  options = _parser().parse_args(own)
  command.check_options(options, processes=1, gpus_per_process=0)
  config = command.check(flags)
  if config.workdir:
    logs = pathlib.Path(config.workdir) / 'logs'
    logs.mkdir(parents=True, exist_ok=True)
  else:
    logs = pathlib.Path(tempfile.mkdtemp(prefix='fedms_logs_'))
  print(f'launch: log files in {logs}', file=sys.stderr)
  coordinator = f'127.0.0.1:{_free_port()}'

  def words(process: int) -> list[str]:
    return [
      *shlex.split(options.program),
      *flags,
      f'--distributed.coordinator={coordinator}',
      f'--distributed.processes={options.processes}',
      f'--distributed.process_id={process}',
    ]

  codes = together(
    words,
    options.processes,
    logs,
    config.distributed.timeout,
    lambda process: _environment(process, options.gpus_per_process),
  )
  for process, code in enumerate(codes):
    if code:
      print(
        f'launch: process {process} {command.ending(code)}; see '
        f'{logs / log_name(process)}',
        file=sys.stderr,
      )
  return command.verdict(codes)


def _parser():
  options = command.parser('launch local', 'Runs processes on this machine.')
  command.add_processes(options, default=2)
  command.add_program(options)
  return options


def together(
  words: Callable[[int], list[str]],
  processes: int,
  logs: pathlib.Path,
  timeout: float,
  environment: Callable[[int], Mapping[str, str]],
  margin: float = MARGIN,
) -> list[int]:
  """Runs processes until all have ended; gives their exit codes.

  Args:
    words: the command line of each process.
    processes: how many.
    logs: folder of the log files.
    timeout: seconds, plus `margin`, that the others have when one failed.
    environment: the environment of each process.
    margin: seconds from the request to end until they are killed, too.
  """
  with Children() as children:
    started = [
      children.start(words(i), logs / log_name(i), environment(i), show=i == 0)
      for i in range(processes)
    ]
    end = None
    while any(child.poll() is None for child in started):
      if end is None and any(child.poll() for child in started):
        end = time.monotonic() + timeout + margin
      if end is not None and time.monotonic() > end:
        children.stop(margin)
      time.sleep(0.05)
  return [child.returncode for child in started]


def log_name(process: int) -> str:
  return f'process-{process}.log'


def _environment(process: int, gpus: int) -> dict[str, str]:
  """The environment of a process: its own GPUs, or the CPU alone."""
  if not gpus:
    return os.environ | {'JAX_PLATFORMS': 'cpu'}
  mine = range(process * gpus, (process + 1) * gpus)
  return os.environ | {'JAX_LOCAL_DEVICE_IDS': ','.join(map(str, mine))}


def _free_port() -> int:
  """A port of this machine that nobody listens on now."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


if __name__ == '__main__':
  sys.exit(command.run(main))
