"""Which blocks each client of a cohort trains, by its own scores of them
(F3OCUS, arXiv 2411.11912).

A client scores its blocks, S [K, L] of which each row sums to 1 (see
`simulation/tangents.py`). The server chooses of each client as many blocks as
it may train. Two aims disagree: the sum of the scores of what is chosen, and
the variance over blocks of how many clients train each. What no other choice
beats in both aims is the front; its knee, the choice farthest from the chord
between its ends with both aims on [0, 1], is taken.

The paper finds the front by meta-heuristics. `exact` is ours: for a weight c,
max sum S - c sum_b n_b^2 is a flow of least cost, a linear program whose
corners are whole numbers, and going from corner to corner between the ends
gives all of the front's convex hull. `nsga2` (non-dominated sorting, after
NSGA-II) and `annealing` are two of the paper's five kinds, in forms of ours.
All are pure functions of the scores and a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import ActiveSet

_MOST = 32  # programs that the front is looked for by
_POPULATION, _GENERATIONS = 32, 60
_WEIGHTS, _MOVES = 8, 400


class Choice(NamedTuple):
  """Sets of a cohort, bool [K, L], and both aims of it."""

  sets: np.ndarray
  total: float
  variance: float


def measured(scores: np.ndarray, sets: np.ndarray) -> Choice:
  """A choice with its aims. scores, sets: [K, L]."""
  return Choice(
    sets, float((scores * sets).sum()), float(sets.sum(axis=0).var())
  )


def shares(scores: np.ndarray) -> np.ndarray:
  """Scores [K, L] with rows that sum to 1; even where they say nothing."""
  scores = np.asarray(scores, np.float64)
  told = np.isfinite(scores).all(axis=1) & (scores.sum(axis=1) > 0)
  scores = np.where(told[:, None], scores, 1.0)
  return scores / scores.sum(axis=1, keepdims=True)


def pick(search: str, seed: int) -> Callable[..., list[ActiveSet]]:
  """(depths, round, scores [K, L]) -> the sets of a cohort, by a `search` of
  `SEARCHES`."""
  find = SEARCHES[search]

  def chosen(depths: Sequence[int], t: int, scores) -> list[ActiveSet]:
    if not depths:
      return []
    rng = np.random.default_rng([seed, Stream.SEARCH.number, t])
    found = find(shares(scores), np.asarray(depths), rng)
    return [tuple(map(bool, row)) for row in knee(found).sets]

  return chosen


def knee(front: Sequence[Choice]) -> Choice:
  """The choice farthest from the chord; of a front of two, the first, that of
  the largest sum."""
  front = sorted(front, key=lambda c: (-c.total, c.variance))
  first, last = front[0], front[-1]
  height = first.total - last.total
  width = first.variance - last.variance
  if height <= 0 or width <= 0:
    return first
  # Both aims on [0, 1]: the chord is the diagonal.
  away = [
    (c.total - last.total) / height - (c.variance - last.variance) / width
    for c in front
  ]
  return front[int(np.argmax(np.round(away, 9)))]


def undominated(found: Sequence[Choice]) -> list[Choice]:
  """What nothing else beats in both aims, by falling sum."""
  kept: list[Choice] = []
  for c in sorted(found, key=lambda c: (-c.total, c.variance)):
    if not kept or c.variance < kept[-1].variance - 1e-12:
      kept.append(c)
  return kept


def best(scores: np.ndarray, depths: np.ndarray, weight: float) -> Choice:
  """max sum S - weight * sum_b n_b^2, exactly.

  scores: [K, L]. depths: int [K], blocks of each client.
  """
  clients, blocks = scores.shape
  size = clients * blocks
  # Variables: client i trains block b; block b has a j-th client.
  places = weight * (2 * np.arange(1, clients + 1) - 1.0)
  gains = np.concatenate([-scores.ravel(), np.tile(places, blocks)])
  eye = scipy.sparse.identity
  by_client = scipy.sparse.kron(eye(clients), np.ones((1, blocks)))
  by_block = scipy.sparse.kron(np.ones((1, clients)), eye(blocks))
  used = scipy.sparse.kron(eye(blocks), np.ones((1, clients)))
  equal = scipy.sparse.bmat([[by_client, None], [by_block, -used]])
  due = np.concatenate([depths, np.zeros(blocks)])
  found = scipy.optimize.linprog(
    gains, A_eq=equal.tocsr(), b_eq=due, bounds=(0, 1), method='highs-ds'
  )
  assert found.status == 0, found.message
  return measured(scores, found.x[:size].reshape(scores.shape) > 0.5)


def exact(scores: np.ndarray, depths: np.ndarray, rng=None) -> list[Choice]:
  """The corners of the front's convex hull, at most about `_MOST`."""
  del rng
  # An end has the other aim as well as it can: both weights are tie-breaks.
  ends = [best(scores, depths, c) for c in (1e-7, 2.0 * scores.max() + 1)]
  found, left = list(ends), [(ends[0], ends[1])]
  blocks = scores.shape[1]
  while left and len(found) < _MOST:
    one, other = left.pop(0)
    gap = blocks * (one.variance - other.variance)  # of sums of squares
    if gap <= 1e-9 or one.total - other.total <= 1e-9:
      continue
    weight = (one.total - other.total) / gap
    new = best(scores, depths, weight)
    if worth(new, weight, blocks) > worth(one, weight, blocks) + 1e-9:
      found.append(new)
      left += [(one, new), (new, other)]
  return undominated(found)


def worth(choice: Choice, weight: float, blocks: int) -> float:
  """sum S - weight * sum_b n_b^2, up to what all choices have."""
  return choice.total - weight * blocks * choice.variance


def nsga2(scores, depths, rng) -> list[Choice]:
  """A population that is crossed, changed and sorted by both aims."""
  noise = rng.gumbel(size=(_POPULATION, *scores.shape))
  spread = np.linspace(0, 2, _POPULATION)[:, None, None] * scores.std()
  people = [
    measured(scores, _largest(x, depths)) for x in scores + spread * noise
  ]
  for _ in range(_GENERATIONS):
    pairs = rng.integers(len(people), size=(_POPULATION, 2))
    for a, b in pairs:
      from_one = rng.random(len(scores)) < 0.5
      child = np.where(from_one[:, None], people[a].sets, people[b].sets)
      people.append(measured(scores, _moved(child, rng)))
    people = _fittest(people)
  return undominated(people)


def _fittest(people: list[Choice]) -> list[Choice]:
  """The first `_POPULATION`, front by front; of the last front those that are
  least crowded."""
  kept, left = [], list(people)
  while len(kept) < _POPULATION:
    front = undominated(left)
    taken = {id(c) for c in front}
    left = [c for c in left if id(c) not in taken]
    room = _POPULATION - len(kept)
    if len(front) > room:
      order = np.argsort(-_crowding(front), kind='stable')
      front = [front[i] for i in order[:room]]
    kept += front
  return kept


def _crowding(front: list[Choice]) -> np.ndarray:
  """How far a choice's neighbors on a front are from each other."""
  aims = np.array([[c.total, c.variance] for c in front])
  far = np.full(len(front), np.inf)
  width = np.ptp(aims, axis=0) + 1e-12
  far[1:-1] = (np.abs(aims[2:] - aims[:-2]) / width).sum(axis=1)
  return far


def annealing(scores, depths, rng) -> list[Choice]:
  """Simulated annealing at several weights of the two aims."""
  blocks, found = scores.shape[1], []
  for weight in np.geomspace(1e-3, 1.0, _WEIGHTS) * scores.max():
    now = measured(scores, _largest(scores, depths))
    found.append(now)
    for heat in np.geomspace(scores.max() / 2, 1e-3 * scores.max(), _MOVES):
      new = measured(scores, _moved(now.sets, rng))
      gain = worth(new, weight, blocks) - worth(now, weight, blocks)
      if gain >= 0 or rng.random() < np.exp(gain / heat):
        now = new
        found.append(now)
  return undominated(found)


def _largest(values: np.ndarray, depths) -> np.ndarray:
  """The `depths` largest of each row, bool; ties go to the output's side."""
  blocks = values.shape[1]
  order = np.lexsort((-np.arange(blocks)[None] + 0 * values, -values))
  ranks = np.argsort(order, axis=1)
  return ranks < np.asarray(depths)[:, None]


def _moved(sets: np.ndarray, rng) -> np.ndarray:
  """A block of one client, if it has a choice, for another."""
  sets, k = sets.copy(), rng.integers(len(sets))
  on, off = np.flatnonzero(sets[k]), np.flatnonzero(~sets[k])
  if len(on) and len(off):
    sets[k, rng.choice(on)], sets[k, rng.choice(off)] = False, True
  return sets


SEARCHES = {'exact': exact, 'nsga2': nsga2, 'annealing': annealing}
