"""Schedules: when and where LoRA is active (SAL, arXiv 2312.15926).

A schedule is a pure state machine on the host: a trigger says how many blocks,
an order which ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import ActiveSet
from fedms_jax.schedules.orders import Pick, in_order
from fedms_jax.schedules.triggers import Trigger


class Schedule(NamedTuple):
  """When and where LoRA is active.

  init: JSON-able state. observe: (state, round, score) -> state, for each
  round with a score, in order. active: (state, round, ids of the whole cohort)
  -> what is active of each of its clients, in their order. delay: how many
  rounds before the one that is planned may still be without their scores; 0:
  a round is planned when the last one's score is known. over: (state, round)
  -> whether the stage is over before this round. told: state -> that of the
  trigger, with all scores that are known. by_scores: asked in place of
  `active`, with the scores [K, L] that the cohort's clients have just given
  their blocks, by a schedule that wants them (`simulation/tangents.py`); None:
  it does not. reads: whether what is active depends on scores of the model; if
  not, there need be none. planned: (state, round, what is active of each
  client of the cohort) -> state, for each round, in order; None: the state does
  not look at what was planned.
  """

  init: Any
  observe: Callable[[Any, int, float], Any]
  active: Callable[[Any, int, Sequence[int]], list[ActiveSet]]
  delay: int = 0
  over: Callable[[Any, int], bool] = lambda state, t: False
  told: Callable[[Any], Any] = lambda state: state
  by_scores: Callable[..., list[ActiveSet]] | None = None
  reads: bool = True
  planned: Callable[[Any, int, list[ActiveSet]], Any] | None = None


def schedule(
  trigger: Trigger,
  where: Pick | Sequence[int],
  *,
  budgets: Sequence[int] = (),
  seed: int = 0,
  ends: bool = False,
  by_scores: Callable[..., list[ActiveSet]] | None = None,
) -> Schedule:
  """`depth_k(t) = min(progress(t), budget_k)` blocks. where: picks them, or
  their fixed order. ends: the stage is over when the trigger has settled.
  by_scores: (depths, round, scores [K, L]) -> sets, which picks them in place
  of `where` when there are scores."""
  pick = where if callable(where) else in_order(where)

  def observe(state, t, score):
    del t
    return trigger.observe(state, score)

  def depths_of(state, t, clients):
    depth = trigger.progress(state, t)
    if not budgets:
      return [depth] * len(clients)
    return [min(depth, budget(budgets, i, seed)) for i in clients]

  def active(state, t, clients):
    clients = [int(i) for i in clients]
    return pick(depths_of(state, t, clients), t, clients)

  def scored(state, t, clients, scores):
    assert by_scores is not None
    clients = [int(i) for i in clients]
    return by_scores(depths_of(state, t, clients), t, scores)

  found = Schedule(trigger.init, observe, active, reads=trigger.reads)
  if by_scores:
    found = found._replace(by_scores=scored)
  settled = trigger.settled
  if not ends:
    return found
  if settled is None:
    raise ValueError(
      'a stage that ends when its schedule has settled needs a queue, and this '
      'schedule is none.'
    )
  return found._replace(over=lambda state, t: settled(state))


def until_flat(inner: Schedule, patience: int, gain: float) -> Schedule:
  """The schedule of a stage that is over when no score of the last `patience`
  rounds was above the best one before by `gain` or more."""

  def observe(state, t, score):
    best, since = state['best'], state['since'] + 1
    if math.isfinite(score) and (best is None or score >= best + gain):
      best, since = float(score), 0
    within = inner.observe(state['inner'], t, score)
    return {'inner': within, 'best': best, 'since': since}

  def scored(state, t, clients, scores):
    assert inner.by_scores is not None
    return inner.by_scores(state['inner'], t, clients, scores)

  def planned(state, t, sets):
    assert inner.planned is not None
    return state | {'inner': inner.planned(state['inner'], t, sets)}

  return Schedule(
    {'inner': inner.init, 'best': None, 'since': 0},
    observe,
    lambda state, t, ids: inner.active(state['inner'], t, ids),
    inner.delay,
    lambda state, t: (
      state['since'] >= patience or inner.over(state['inner'], t)
    ),
    lambda state: inner.told(state['inner']),
    scored if inner.by_scores else None,
    planned=planned if inner.planned else None,
  )


def delayed(inner: Schedule, rounds: int) -> Schedule:
  """The schedule that sees each score so many rounds late.

  Then round t is planned by the scores up to t - 1 - `rounds`, whether or not
  later ones are known already, so that `rounds` of them may be in flight.
  """

  def observe(state, t, score):
    late = [*state['late'], [t, float(score)]]
    # None of these can be news to a round that is still to be planned.
    seen = sum(number <= t - rounds for number, _ in late)
    return {'inner': _told(state['inner'], late[:seen]), 'late': late[seen:]}

  def known(state, t):
    late = [pair for pair in state['late'] if pair[0] < t - rounds]
    return _told(state['inner'], late)

  def active(state, t, clients):
    return inner.active(known(state, t), t, clients)

  def scored(state, t, clients, scores):
    assert inner.by_scores is not None
    return inner.by_scores(known(state, t), t, clients, scores)

  def planned(state, t, sets):
    assert inner.planned is not None
    return state | {'inner': inner.planned(state['inner'], t, sets)}

  def _told(state, late):
    for number, score in late:
      state = inner.observe(state, number, score)
    return state

  return Schedule(
    {'inner': inner.init, 'late': []},
    observe,
    active,
    inner.delay + rounds,
    lambda state, t: inner.over(known(state, t), t),
    lambda state: inner.told(_told(state['inner'], state['late'])),
    scored if inner.by_scores else None,
    inner.reads,
    planned if inner.planned else None,
  )


def budget(budgets: Sequence[int], client: int, seed: int) -> int:
  """The depth budget of a client: a pure, even draw from `budgets`."""
  rng = np.random.default_rng([seed, Stream.BUDGET.number, client])
  return budgets[int(rng.integers(len(budgets)))]
