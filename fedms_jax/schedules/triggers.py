"""Triggers: how many blocks are active, by the score or by the round."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.streams import Stream


class Trigger(NamedTuple):
  """When: `progress(state, round)` is the number of active blocks. settled:
  whether training has settled at the most of them; None: it cannot tell. reads:
  whether it depends on scores."""

  init: Any
  observe: Callable[[Any, float], Any]
  progress: Callable[[Any, int], int]
  settled: Callable[[Any], bool] | None = None
  reads: bool = True


class Begin(NamedTuple):
  """What a trigger of a plugin is made of: how many blocks are active first,
  and at most; how many rounds its stage has; the seed of the run."""

  first: int
  cap: int
  rounds: int
  seed: int = 0


def _by_round(progress: Callable[[int], int]) -> Trigger:
  """A trigger that ignores the score."""
  return Trigger(None, lambda s, _: s, lambda _, t: progress(t), reads=False)


def _range(scores: Sequence[float]) -> float:
  return max(scores) - min(scores)


def queue(
  start: int,
  cap: int,
  *,
  length: int,
  eps: float,
  step: int,
  spread: Callable[[Sequence[float]], float] = _range,
) -> Trigger:
  """The capability queue: when the `spread` of `length` scores, by default
  their range, is under `eps`, activate `step` more blocks and empty the queue.

  With the standard deviation of losses as spread it is the queue by which
  FeMAM adds a level.
  """

  def flat(scores) -> bool:
    full = len(scores) == length and all(map(math.isfinite, scores))
    return full and spread(scores) < eps

  def observe(state, score):
    depth, scores = state['depth'], [*state['scores'], float(score)][-length:]
    if flat(scores) and depth < cap:
      return {'depth': min(cap, depth + step), 'scores': []}
    return {'depth': depth, 'scores': scores}

  def settled(state) -> bool:
    return state['depth'] >= cap and flat(state['scores'])

  init = {'depth': start, 'scores': []}
  return Trigger(init, observe, lambda state, _: state['depth'], settled)


def continued(trigger: Trigger, state: Any, rounds: int) -> Trigger:
  """The trigger that goes on from a state after so many rounds; a state of
  None: from its own beginning."""
  return trigger._replace(
    init=trigger.init if state is None else state,
    progress=lambda now, t: trigger.progress(now, t + rounds),
  )


def fixed(start: int, cap: int, *, interval: int, step: int) -> Trigger:
  """`step` more blocks each `interval` rounds."""
  return _by_round(lambda t: min(cap, start + step * (t // interval)))


def linear(start: int, cap: int, *, rounds: int) -> Trigger:
  """Evenly from `start` to `cap` over `rounds`."""
  levels = cap - start + 1
  return _by_round(lambda t: min(cap, start + levels * t // max(rounds, 1)))


def geometric(start: int, cap: int, *, interval: int) -> Trigger:
  """Twice as many blocks each `interval` rounds."""
  # The exponent is bounded so that late rounds do not build huge integers.
  return _by_round(lambda t: min(cap, start << min(t // interval, 32)))


def dense(cap: int) -> Trigger:
  """All blocks from the first round."""
  return _by_round(lambda t: cap)


def random(start: int, cap: int, *, probability: float, step: int, seed: int):
  """Each round activates `step` more blocks with this probability."""

  def progress(t: int) -> int:
    draws = np.random.default_rng([seed, Stream.RANDOM.number]).random(t)
    return min(cap, start + step * int((draws < probability).sum()))

  return _by_round(progress)


def manual(depths: Sequence[int], cap: int) -> Trigger:
  """The given depth in each round; the last one stays."""
  for i, depth in enumerate(depths):
    if not 1 <= depth <= cap:
      raise ValueError(
        f'`depths`[{i}]={depth} is not a depth of this model; '
        f'allowed: 1 to {cap}.'
      )
  if not depths:
    raise ValueError(
      '`depths` is empty, but the manual schedule needs the depth of each '
      'round, such as `depths`=1,1,2,4.'
    )
  return _by_round(lambda t: depths[min(t, len(depths) - 1)])
