"""What a launcher starts: a program, the flags of a run, and how it ended."""

from __future__ import annotations

import argparse
import pathlib
import shlex
import signal
import sys
from collections.abc import Callable, Sequence

from fedms_jax.cluster.signals import EXIT_SAVED
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import exits
from fedms_jax.shell import flags as fedms_flags
from fedms_jax.shell.config import Config
from fedms_jax.shell.exits import EXIT_USER

# Flags that say which process this is.
_OURS = (
  'distributed.coordinator',
  'distributed.processes',
  'distributed.process_id',
)

PROGRAM = f'{shlex.quote(sys.executable)} -m fedms_jax'


def parser(module: str, description: str) -> argparse.ArgumentParser:
  """The parser of a launcher's own options; the run's flags come after --."""
  return argparse.ArgumentParser(
    prog=f'fedms {module}',
    usage=f'fedms {module} [options] -- [flags of fedms]',
    description=description,
    allow_abbrev=False,
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )


def add_program(options: argparse.ArgumentParser, default: str = PROGRAM):
  """The option that says what every process runs."""
  options.add_argument(
    '--program',
    default=default,
    help='command line of a process; it takes the flags of fedms',
  )


def add_processes(options: argparse.ArgumentParser, default: int) -> None:
  """How many processes a run has where the launcher starts them itself."""
  add = options.add_argument
  add('--processes', type=int, default=default, help='processes of a run')
  add('--gpus_per_process', type=int, default=0, help='GPUs of each, its own')


def add_job(options: argparse.ArgumentParser) -> None:
  """The options of a job of any scheduler."""
  add = options.add_argument
  add('--name', default='', help='name of the job (empty: of the folder)')
  add(
    '--grace',
    type=int,
    default=120,
    help='seconds that a run has to save before it is stopped',
  )
  add(
    '--max_restarts',
    type=int,
    default=100,
    help='most times that a job is started again by itself',
  )
  add('--dry_run', action='store_true', help='print the job, submit nothing')


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """The launcher's own words, and the flags of the run: what follows --."""
  argv = list(argv)
  at = argv.index('--') if '--' in argv else len(argv)
  return argv[:at], argv[at + 1 :]


def check(words: Sequence[str]) -> Config:
  """Reads the flags of a run as the run will, so that a mistake is found
  here and not in every job. Relative paths count from here.

  What the flags say by themselves is checked; whether data and model fit is
  not, for they may be elsewhere.

  Raises:
    ValueError: a flag that is none, a value that is not allowed, flags that
      do not fit each other or the run of the folder.
  """
  config = fedms_flags.parse(['fedms', *words])
  given = config_lib.values(config)
  for name in _OURS:
    if given[name] != config_lib.flatten(config_lib.Config)[name].default:
      raise ValueError(
        f'--{name}={given[name]} after --: the launcher gives each process '
        'its own. Leave it out.'
      )
  text = fedms_flags.to_text(config)
  _fits_itself(config)
  if config.workdir:
    _one_line('workdir', config.workdir)
    Workdir(pathlib.Path(config.workdir), True, None).check_flags(text)
  return config


def _fits_itself(config: Config) -> None:
  """Builds of a run what needs no data."""
  from fedms_jax.shell import aggregators, build, catalog  # lazy: JAX

  catalog.find(config.algorithm.name)
  aggregators.aggregator(config)
  if config.model.name == 'vit':  # else the number of blocks is unknown
    build.schedule(config.schedule, config.model.blocks, 1, 'inherit')


def check_options(options: argparse.Namespace, **least: int) -> None:
  """Refuses options that no scheduler takes, or that would break the file
  that is written for it. least: the smallest allowed number, by name.

  Raises:
    ValueError: see above.
  """
  for name, low in least.items():
    value = getattr(options, name)
    if value < low:
      raise ValueError(f'--{name}={value}; allowed: at least {low}.')
  for name, value in vars(options).items():
    for text in value if isinstance(value, list) else [value]:
      if isinstance(text, str) and name != 'env':  # whose values are quoted
        _one_line(name, text)


def _one_line(name: str, text: str) -> None:
  if len(text.splitlines()) > 1 or not text.isprintable():
    raise ValueError(
      f'--{name}={text!r} has line breaks or control characters; allowed: one '
      'line of text.'
    )


def workdir(config: Config) -> str:
  """The run's folder.

  Raises:
    ValueError: it has none; a job that nobody watches must leave something.
  """
  if not config.workdir:
    raise ValueError(
      'the flags after -- have no --workdir, so the run would leave nothing. '
      'Add --workdir=FOLDER.'
    )
  return config.workdir


def verdict(codes: Sequence[int]) -> int:
  """One exit code for several processes, killed ones included (-9 or 137).

  What cannot be mended by starting again wins: a user's mistake (2), then a
  crash. Its peers only saw that a process was lost (75), and so does the
  launcher if one was killed.
  """
  if EXIT_USER in codes:
    return EXIT_USER
  crashed = [c for c in codes if 0 < c <= 128 and c != EXIT_SAVED]
  if crashed:
    return crashed[0]
  return EXIT_SAVED if any(codes) else 0


def ending(code: int) -> str:
  """How a process ended, in words."""
  if code < 0 or code > 128:
    return f'killed by {signal.Signals(-code if code < 0 else code - 128).name}'
  words = {0: 'done', EXIT_USER: 'user error', EXIT_SAVED: 'to be resumed'}
  return f'{words.get(code, "crashed")} (exit code {code})'


def run(main: Callable[[Sequence[str]], int]) -> int:
  """Runs a launcher; a user's mistake is one line, not a traceback."""
  exits.own_process()
  return exits.code_of(lambda: main(sys.argv[1:]), 'launch')
