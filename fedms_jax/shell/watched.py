"""What of a run is measured, watched by the schedule, and ends a stage: from
flags, checked against the task before anything is compiled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from fedms_jax.core.metrics import Metric
from fedms_jax.core.types import Table, Task
from fedms_jax.data.names import DataWarning
from fedms_jax.models import measures
from fedms_jax.shell import plugged
from fedms_jax.shell.config import Config
from fedms_jax.simulation.stopping import Stop

PLAIN = ('validation', 'train_accuracy', 'train_loss')  # of schedule.score
_LARGEST = 4096  # numbers that the report of a client is made of
_KEPT = ('capability', 'score', 'train_score', 'train_loss')


class Watched(NamedTuple):
  """metrics: of test rows. score: what the schedule watches, see
  `Options.score`. stop: what ends a stage early, or None."""

  metrics: tuple[Metric, ...] = ()
  score: str | Metric = 'validation'
  stop: Stop | None = None


# Nothing beside the score.
NOTHING = Watched()


def watched(config: Config, tasks: Sequence[Task], table: Table) -> Watched:
  """What the flags ask for. tasks: of all stages; metrics are of the last one.

  Raises:
    ValueError: a metric says nothing of the task, or a flag of what is not
      measured.
  """
  task = tasks[-1]
  _check_stages(config, tasks)
  found = tuple(
    _metric('eval.metrics', name, task, table)
    for name in measures.parse(config.eval.metrics)
  )
  score = _score(config, task, table)
  return Watched(found, score, _stop(config, found, score))


def _check_stages(config: Config, tasks: Sequence[Task]) -> None:
  """Raises `ValueError` for a metric that would be measured in stages that
  learn something else."""
  if len({task.kind for task in tasks}) == 1:
    return
  wrong = {
    f'--schedule.score={config.schedule.score}': (
      config.schedule.score not in PLAIN,
      f'allowed: {", ".join(PLAIN)}',
    ),
    f'--eval.metrics={config.eval.metrics} during the run (--eval.every='
    f'{config.eval.every})': (
      bool(config.eval.every and config.eval.metrics),
      'allowed: --eval.every=0',
    ),
  }
  for flag, (found, allowed) in wrong.items():
    if found:
      raise ValueError(
        f'{flag} does not go with --stages={config.stages}, whose stages learn '
        f'different things; {allowed}. Change one of them.'
      )


def _metric(flag: str, name: str, task: Task, table: Table) -> Metric:
  own = plugged.metric(name)
  if own is not None:
    return own
  try:
    return measures.make(name, task, len(table.label_names), table.outputs)
  except ValueError as e:
    raise ValueError(f'--{flag}={name!r}: {e}') from None


def _score(config: Config, task: Task, table: Table) -> str | Metric:
  name = config.schedule.score
  if name in PLAIN:
    return name
  flag = 'schedule.score'
  try:
    metric = _metric(flag, name, task, table)
  except ValueError as e:
    raise ValueError(f'{e} Or {", ".join(PLAIN)}.') from None
  size = math.prod(metric.shape)
  if metric.table or size > _LARGEST:
    what = 'is no number' if metric.table else f'is made of {size} sums'
    raise ValueError(
      f'--{flag}={name} {what}, of each client that reports; allowed: a number '
      f'of at most {_LARGEST} sums. Choose another metric, or validation.'
    )
  return metric


def _stop(
  config: Config, metrics: tuple[Metric, ...], score: str | Metric
) -> Stop | None:
  s, usual = config.stop, type(config.stop)()
  if not s.target.strip() and not s.patience:
    for name in ('metric', 'delta'):
      if getattr(s, name) != getattr(usual, name):
        raise ValueError(
          f'--stop.{name}={getattr(s, name)!r} says nothing without '
          '--stop.target or --stop.patience. Give one of them, or leave it out.'
        )
    return None
  directions = dict.fromkeys(_KEPT, False) | {'train_loss': True}
  directions['capability'] = (
    score.lower if isinstance(score, Metric) else score == 'train_loss'
  )
  if config.eval.every:
    for kind in ('own', 'pooled', 'unseen'):
      directions[f'eval_{kind}'] = False
      for metric in metrics:
        if not metric.table:
          directions[f'eval_{kind}_{metric.name}'] = metric.lower
    directions['eval_own_loss'] = True
    if config.eval.mixed:
      directions['eval_mixed'] = False
  if s.metric not in directions:
    more = '' if config.eval.every else '; with --eval.every also eval_own, ...'
    raise ValueError(
      f'--stop.metric={s.metric!r} is not measured in this run; allowed: '
      f'{", ".join(directions)}{more}.'
    )
  if s.patience and s.metric.startswith('eval_'):
    warnings.warn(
      f'--stop.patience with --stop.metric={s.metric} lets test rows say when '
      'to stop: scores on them are then too good. Validation rows say it with '
      '--stop.metric=capability.',
      DataWarning,
      stacklevel=2,
    )
  return Stop(
    s.metric, _target(s.target), s.patience, s.delta, directions[s.metric]
  )


def _target(text: str) -> float | None:
  if not text.strip():
    return None
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise ValueError(
      f'--stop.target={text!r} is no finite number; write --stop.target=0.8.'
    )
  return value
