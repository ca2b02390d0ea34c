"""Runs from Python: `run` for flags and values, `simulate` for values alone.

A value that is given is added as a plugin is, under a name that begins with
`python:`, so that there is one way through data, models and methods.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fedms_jax.cluster.processes import SingleProcess
from fedms_jax.shell import program_cache, values
from fedms_jax.shell import run as runner
from fedms_jax.shell.config import Config
from fedms_jax.shell.finished import Finished
from fedms_jax.shell.result import Result
from fedms_jax.simulation import clock


def run(config: Config | None = None, /, **given: Any) -> Result:
  """Runs a simulation, and gives what came of it.

  Args:
    config: to start from; None: what `fedms` does without flags.
    **given: options by the names of their flags, with `_` for the dot
      (`client_learning_rate=0.1`), or a section as a dict (`client={...}`); and
      in place of a name a value:
      model: a `Network` (`of_flax`, `of`), or a name as of --model.name;
      data: of `from_arrays` or `from_clients`, a `datasets.Dataset`, or several
        by their splits, a function that gives one of these, or --data.source;
      algorithm: a `Method`, a function `Builder` -> stages or `Algorithm`, or a
        name as of --algorithm.name, or `fedopt`;
      schedule: a `Trigger`, a function `Begin` -> `Trigger`, or a name;
      partition: a function, see `Owner` of `data/partition.py`, or a name;
      sampler: a function, see `Draw` of `data/sampling.py`, or a name;
      aggregator: an `Aggregator`, or a name;
      task: a `Task`;
      metrics: names and `Metric` values;
      observers: functions of a round's record, or `Silent` observers;
      rounds: of the method in all; of FedMS also a pair, of its stages.

  Raises:
    ValueError: something is not allowed, or does not fit.
  """
  made = values.config(config, given)
  program_cache.begin()
  return _run(made)


def simulate(
  model: Any,
  data: Any,
  method: Any = 'fedavg',
  *,
  rounds: int = 10,
  **given: Any,
) -> Result:
  """Runs a method on a model and data of one's own; see `run`.

  Args:
    model: a `Network`, or a name.
    data: as of `run`.
    method: as `algorithm` of `run`.
    rounds: of the method.
    **given: as of `run`.
  """
  asked = {'model': model, 'data': data, 'algorithm': method, 'rounds': rounds}
  return run(**asked, **given)


class _Patient:
  """Asks nobody to stop: in a program of a user, signals are the user's."""

  def requested(self) -> str:
    return ''

  @contextlib.contextmanager
  def between_rounds(self) -> Iterator[None]:
    yield


def _run(config: Config) -> Result:
  peers, found = SingleProcess(), []
  timer = clock.Clock()
  with contextlib.ExitStack() as stack:
    workdir = None
    if config.workdir:
      workdir = stack.enter_context(runner._opened(config, peers))
      stack.push(lambda *error: runner._refused(workdir, *error))
    runner._run(
      config,
      workdir,
      _Patient(),
      timer,
      stack,
      runner.worlds,
      peers,
      found.append,
    )
    # In memory, the clients' states live as long as the result.
    kept = None if config.workdir else stack.pop_all()
  finished: Finished = found[0]
  return Result(finished, kept)
