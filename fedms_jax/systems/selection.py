"""Who is asked to take part, among those who can.

A selection is a pure state machine: its memory is JSON, and what it draws
follows from the seed, the stage, the step and how often it was asked in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.streams import Stream

Json = Any


class Draw(NamedTuple):
  """What is asked for. part: how many draws of this step there were before.
  busy: ids that are in flight or have just ended. online: bool [N]; None: all
  are."""

  step: int
  part: int
  count: int
  busy: np.ndarray
  online: np.ndarray | None = None


class Known(NamedTuple):
  """What a client last reported: the mean training loss, over how many rows of
  its steps, the virtual seconds that its task took, and in which step."""

  loss: float
  rows: float
  seconds: float
  step: int


class Selection(NamedTuple):
  """choose: (memory, draw) -> (ids, ascending, at most `count`, fewer where
  fewer can; memory). hears: whether it looks at what clients report, which
  `remembered` then adds to its memory."""

  init: Json
  choose: Callable[[Json, Draw], tuple[np.ndarray, Json]]
  hears: bool = False


# (what is known by id, who can take part, what is asked, a generator) -> ids
Rule = Callable[
  [Mapping[int, Known], np.ndarray, Draw, np.random.Generator], Any
]


def uniform(seed: int, stage: int, clients: int) -> Selection:
  """Everybody has the same chance. A first draw of a step in which all can take
  part is that of `cohorts.sample_cohort`, in time that grows with the count."""

  def choose(memory: Json, draw: Draw):
    rng = _generator(seed, Stream.COHORT, stage, draw)
    if draw.online is not None:
      free = _free(clients, draw)
      count = min(draw.count, len(free))
      return np.sort(rng.choice(free, count, replace=False)), memory
    asked = min(draw.count + len(draw.busy), clients)
    found = rng.choice(clients, asked, replace=False, shuffle=False)
    if len(draw.busy):
      found = found[~np.isin(found, draw.busy)]
      count = min(draw.count, len(found))
      found = rng.choice(found, count, replace=False)
    return np.sort(found.astype(np.int64)), memory

  return Selection(None, choose)


def by(seed: int, stage: int, clients: int, rule: Rule) -> Selection:
  """By a function of what clients have reported.

  rule: (id -> `Known`, ids that can take part, ascending; the draw, whose count
  is no larger than their number; a generator) -> ids among them.

  Raises:
    ValueError: when it gives others, one twice, or too many.
  """

  def choose(memory: Json, draw: Draw):
    free = _free(clients, draw)
    rng = _generator(seed, Stream.SELECT, stage, draw)
    known = {int(k): Known(*v) for k, v in memory.items()}
    count = min(draw.count, len(free))
    draw = draw._replace(count=count)
    found = np.asarray(rule(known, free, draw, rng), np.int64).reshape(-1)
    fine = len(np.unique(found)) == len(found) <= count
    if not fine or not np.isin(found, free).all():
      raise ValueError(
        f'the rule of a selection gave {found[:8].tolist()} in step '
        f'{draw.step}; allowed: at most {count} different ids of those that '
        'it was given.'
      )
    return np.sort(found), memory

  return Selection({}, choose, hears=True)


def power_of_choice(rows: np.ndarray, candidates: int) -> Rule:
  """Those of a few candidates whose loss is largest (Power-of-Choice, Cho et
  al., arXiv 2010.01243).

  Candidates are drawn by their shares of the rows [N], without replacement; of
  each the loss counts that it last reported, and who never has comes first:
  the paper's variant rpow-d, which costs no further messages. candidates: d;
  at least as many are drawn as are wanted.
  """

  def rule(known, free, draw, rng):
    count = draw.count
    weight = rows[free].astype(float)
    drawn = min(max(candidates, count), int((weight > 0).sum()))
    some = rng.choice(free, drawn, replace=False, p=weight / weight.sum())
    loss = [known[i].loss if i in known else np.inf for i in some.tolist()]
    return some[np.argsort(-np.asarray(loss), kind='stable')][:count]

  return rule


class Oort(NamedTuple):
  """Of Oort's rule, arXiv 2010.06081, section 4. explore: share of a cohort
  that was never asked before, times `decay` each step, at least `least`.
  patience: quantile of the known durations, which a client may take without a
  penalty of exponent `penalty`. cutoff: share of the last chosen one's utility
  that suffices. clip: quantile at which utilities end."""

  explore: float = 0.9
  decay: float = 0.98
  least: float = 0.2
  patience: float = 0.3
  penalty: float = 2.0
  cutoff: float = 0.95
  clip: float = 0.95


def oort(how: Oort) -> Rule:
  """Clients of large losses that are quick, some by chance (Oort).

  A client's utility is rows * loss, and sqrt(0.1 log t / last) of the step t
  and the one that it last reported in, of the scale of the largest utility,
  times (T / duration)^penalty if its duration is over T. Where Oort takes the
  root of the mean squared loss of examples, this takes their mean loss, which
  is what clients report; T is a fixed quantile, without Oort's pacer; who was
  never asked is drawn evenly, for his speed is not known. These three are ours.
  now: what is known -> the step.
  """

  def rule(known, free, draw, rng):
    count, step = draw.count, draw.step
    old = np.array([i for i in free.tolist() if i in known], np.int64)
    new = np.array([i for i in free.tolist() if i not in known], np.int64)
    share = max(how.explore * how.decay**step, how.least)
    fresh = min(len(new), max(round(share * count), count - len(old)))
    first = rng.choice(new, fresh, replace=False) if fresh else new[:0]
    left = min(count - fresh, len(old))
    if not left:
      return first
    value = utility(how, [known[i] for i in old.tolist()], step)
    bar = how.cutoff * np.sort(value)[-left]
    good = value >= bar
    weight = np.where(good, value, 0.0) + 1e-12 * good
    second = rng.choice(old, left, replace=False, p=weight / weight.sum())
    return np.concatenate([first, second])

  return rule


def utility(how: Oort, known: list[Known], step: int) -> np.ndarray:
  """Oort's utility of clients, [K], see `oort`."""
  rows, loss, took, last = (
    np.array([getattr(one, name) for one in known], float)
    for name in ('rows', 'loss', 'seconds', 'step')
  )
  value = rows * np.nan_to_num(loss, posinf=0.0)
  value = np.minimum(value, np.quantile(value, how.clip))
  scale = max(float(value.max()), 1e-12)
  age = np.sqrt(0.1 * np.log(max(step, 1) + 1) / (last + 1))
  value = value / scale + age
  limit = np.quantile(took, how.patience)
  slow = took > limit
  factor = (limit / np.where(slow, took, 1.0)) ** how.penalty
  return np.where(slow, value * factor, value)


def remembered(memory: Json, ids, known: list[Known]) -> Json:
  """The memory with newer reports of these clients."""
  new = {str(int(i)): list(one) for i, one in zip(ids, known, strict=True)}
  return memory | new


def _free(clients: int, draw: Draw) -> np.ndarray:
  """Ids of those that can take part, ascending."""
  free = np.ones(clients, bool) if draw.online is None else draw.online.copy()
  free[draw.busy] = False
  return np.flatnonzero(free)


def _generator(seed: int, stream: Stream, stage: int, draw: Draw):
  more = [draw.part] if draw.part else []
  words = [seed, stream.number, stage, draw.step, *more]
  return np.random.default_rng(words)
