"""When a stage has what it was to reach, or gains nothing any more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

# What the costs of reaching a target are counted in.
_SPENT = (
  'bytes_up',
  'bytes_down',
  'client_flops',
  'wall_seconds',
  'virtual_time',
)


class Stop(NamedTuple):
  """What ends a stage before its rounds are over.

  metric: a key of the records of rounds; rounds without it do not count.
  target: a value to reach; None: none. patience: rounds since the best value
  so far; 0: any number. delta: by how much a value must be better than the
  best one to count as such. lower: whether less is better.
  """

  metric: str
  target: float | None = None
  patience: int = 0
  delta: float = 0.0
  lower: bool = False

  def reached(self, value: float) -> bool:
    """Whether a value is the target or better."""
    if self.target is None:
      return False
    return value <= self.target if self.lower else value >= self.target


def begin() -> dict[str, Any]:
  """The state before a stage, as JSON. best: value; round: its round; at: the
  round by which the stage has to end, None: none so far."""
  return {'best': None, 'round': -1, 'at': None}


def observe(
  stop: Stop | None, watch: dict[str, Any], record: dict[str, Any]
) -> dict[str, Any]:
  """The state after the record of another round."""
  value = None if stop is None else record.get(stop.metric)
  if stop is None or value is None or watch['at'] is not None:
    return watch
  if not math.isfinite(value):
    return watch
  number, best = record['round'], watch['best']
  gain = math.inf
  if best is not None:
    gain = best - value if stop.lower else value - best
  # Equal values are no gain, whatever the delta.
  if gain > stop.delta:
    watch = watch | {'best': float(value), 'round': number}
  late = stop.patience and number - watch['round'] >= stop.patience
  if stop.reached(value) or late:
    watch = watch | {'at': number}
  return watch


def over(watch: dict[str, Any], rounds: int) -> bool:
  """Whether a stage ends after so many rounds: one later than what ended it,
  for then that round's record is known, however rounds overlap and whenever
  the run is saved."""
  return watch['at'] is not None and watch['at'] <= rounds - 2


def to_target(
  stop: Stop | None, records: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """What reaching the target took, for the summary; {} without one. records:
  of all stages, those of pre-training are left out.

  Returns:
    {'target': metric, value, reached, and where it was: stage, rounds (of all
    stages), bytes_up, bytes_down, client_flops and, if there is a clock,
    virtual_time; 'target_seconds'}.
  """
  if stop is None or stop.target is None:
    return {}
  told = {'metric': stop.metric, 'value': stop.target, 'reached': False}
  spent = dict.fromkeys(_SPENT, 0.0)
  rounds = (record for record in records if 'depth' in record)
  for count, record in enumerate(rounds, start=1):
    spent = {name: x + (record.get(name) or 0.0) for name, x in spent.items()}
    value = record.get(stop.metric)
    if value is not None and stop.reached(value):
      seconds = spent.pop('wall_seconds')
      if not spent['virtual_time']:  # there is no clock
        del spent['virtual_time']
      where = {'stage': record['stage'], 'rounds': count}
      told |= {'reached': True, **where, **spent}
      return {'target': told, 'target_seconds': seconds}
  return {'target': told, 'target_seconds': None}
