"""What a run shows, and writes for its readers while it goes on."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from fedms_jax.persistence import loggers, writers
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import plugged
from fedms_jax.shell.config import Config
from fedms_jax.simulation import observer

# Settings that are told though they may be those of every run.
_ALWAYS = ('seed', 'algorithm.name')


def shown(config: Config) -> observer.Silent:
  """Bars in a terminal or a notebook; elsewhere, where they would be a mush of
  carriage returns, or if none are wanted, lines by `logging`."""
  if config.progress and (sys.stderr.isatty() or 'ipykernel' in sys.modules):
    return observer.Progress()
  return observer.Log(config.log_seconds, config.log_rounds)


def watching(config: Config, shown: observer.Silent) -> list[Any]:
  """What tells the user of a run how it goes, and the observers of plugins."""
  return [observer.Notes(), shown, *plugged.observers(config.observers)]


def check(config: Config) -> None:
  """Raises `ValueError` for loggers that have nowhere to write, or lack their
  package."""
  names = config.logger_names
  if config.workdir:
    loggers.check(names)
  elif set(names) - {'tensorboard'}:  # which is there unless one takes it away
    raise ValueError(
      f'--loggers={config.loggers} writes beside the files of a run. Add '
      '--workdir.'
    )


def settings(config: Config) -> dict[str, Any]:
  """The flags of a run that say something else than their defaults."""
  usual = config_lib.values(Config())
  return {
    name: value
    for name, value in config_lib.values(config).items()
    if name in _ALWAYS or value != usual[name]
  }


def loggers_of(
  config: Config, workdir: Workdir, stack: contextlib.ExitStack
) -> list[loggers.Logger]:
  """The loggers of --loggers, which `stack` closes.

  Raises:
    ValueError: one of them cannot begin.
  """
  setting = loggers.Setting(workdir.root, settings(config))
  found = []
  for name in config.logger_names:
    found.append(loggers.ALL[name](setting))
    stack.callback(found[-1].close)
  return found


def attach(
  workdir: Workdir, made: list[loggers.Logger], simulation, state, records
) -> observer.Writers:
  """What writes the rounds; a resumed run goes on where its checkpoint was, and
  has the records of the rounds before."""
  at = None if state is None else (state.stage, state.round - 1)
  rounds = () if state is None else state.done
  metrics = writers.MetricsFile(workdir.metrics, at, rounds)
  names = [stage.name for stage in simulation.stages]
  for logger in made:
    logger.begin(None if at is None else metrics.rounds)
  records.records += [
    {**line, 'stage': names[line['stage']]}
    for line in writers.read_metrics(workdir.metrics)
  ]
  return observer.Writers(metrics, made, names)
