"""F3OCUS: the front of two aims, its knee, and searches that do not beat it."""

import itertools

import numpy as np
import pytest

from fedms_jax import schedules
from fedms_jax.schedules import f3ocus, orders, triggers

HAND = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.55, 0.25, 0.2]])
ONE = np.ones(3, int)


def where(choice):
  return tuple(int(np.flatnonzero(row)[0]) for row in choice.sets)


@pytest.mark.parametrize(
  ('weight', 'chosen', 'total', 'variance'),
  [
    (1e-6, (0, 0, 0), 1.65, 2.0),
    (0.1, (0, 1, 0), 1.55, 2 / 3),
    (0.2, (0, 1, 2), 1.2, 0.0),
    (5.0, (0, 1, 2), 1.2, 0.0),
  ],
)
def test_the_best_of_a_weight_by_hand(weight, chosen, total, variance):
  found = f3ocus.best(HAND, ONE, weight)
  assert where(found) == chosen
  np.testing.assert_allclose(
    (found.total, found.variance), (total, variance), atol=1e-9
  )


def test_the_knee_by_hand():
  """Of the chord from (2, 1.65) to (0, 1.2) the middle is farthest."""
  front = f3ocus.exact(HAND, ONE)
  assert [where(c) for c in front] == [(0, 0, 0), (0, 1, 0), (0, 1, 2)]
  assert where(f3ocus.knee(front)) == (0, 1, 0)
  assert where(f3ocus.knee(front[::2])) == (0, 0, 0)
  assert where(f3ocus.knee(front[:1])) == (0, 0, 0)


def everything(scores, depths):
  """All choices there are."""
  each = [
    [
      np.isin(np.arange(scores.shape[1]), some)
      for some in itertools.combinations(range(scores.shape[1]), depth)
    ]
    for depth in depths
  ]
  return [
    f3ocus.measured(scores, np.stack(sets)) for sets in itertools.product(*each)
  ]


# Clients agree on the whole, so that the two aims disagree.
SKEW = np.array([5, 3, 2, 1, 0.5])
SCORES = f3ocus.shares(SKEW * np.random.default_rng(3).random((5, 5)))
DEPTHS = np.array([1, 2, 1, 2, 1])


@pytest.mark.parametrize('weight', [0.0, 0.03, 0.1, 0.4, 3.0])
def test_no_choice_at_all_is_better_than_the_best(weight):
  found = f3ocus.best(SCORES, DEPTHS, weight)
  np.testing.assert_array_equal(found.sets.sum(axis=1), DEPTHS)
  most = max(f3ocus.worth(c, weight, 5) for c in everything(SCORES, DEPTHS))
  np.testing.assert_allclose(f3ocus.worth(found, weight, 5), most, atol=1e-9)


def test_the_front_is_the_hull_of_all_choices():
  front = f3ocus.exact(SCORES, DEPTHS)
  every = everything(SCORES, DEPTHS)
  assert len(front) > 2
  for weight in np.geomspace(1e-4, 5, 60):
    most = max(f3ocus.worth(c, weight, 5) for c in every)
    ours = max(f3ocus.worth(c, weight, 5) for c in front)
    np.testing.assert_allclose(ours, most, atol=1e-6)
  aims = [(c.total, c.variance) for c in front]
  assert aims == sorted(aims, reverse=True)


@pytest.mark.parametrize('search', ['nsga2', 'annealing'])
def test_a_search_comes_near_the_front_and_does_not_beat_it(search):
  rng = np.random.default_rng(0)
  scores = f3ocus.shares(np.arange(6, 0, -1) * rng.random((8, 6)))
  depths = rng.integers(1, 5, 8)
  front = f3ocus.exact(scores, depths)
  found = f3ocus.SEARCHES[search](scores, depths, rng)
  for c in found:
    np.testing.assert_array_equal(c.sets.sum(axis=1), depths)
    assert f3ocus.measured(scores, c.sets)[1:] == c[1:]
  for weight in (0.005, 0.02, 0.1, 0.5):
    ours, best = (
      max(f3ocus.worth(c, weight, 6) for c in some) for some in (found, front)
    )
    assert ours <= best + 1e-9
    start = f3ocus.measured(scores, f3ocus._largest(scores, depths))
    assert ours > f3ocus.worth(start, weight, 6) or weight < 0.01
    assert ours > best - 0.1 * scores.sum()


@pytest.mark.parametrize('search', f3ocus.SEARCHES)
def test_a_pick_is_pure_and_takes_what_each_may(search):
  pick = f3ocus.pick(search, 1)
  found = pick(DEPTHS.tolist(), 5, SCORES)
  assert found == f3ocus.pick(search, 1)(DEPTHS.tolist(), 5, 7 * SCORES)
  assert [sum(s) for s in found] == DEPTHS.tolist()
  assert pick([], 0, np.zeros((0, 5))) == []
  silent = np.full((2, 5), np.nan)
  assert [sum(s) for s in pick([2, 4], 0, silent)] == [2, 4]


def test_a_schedule_that_is_delayed_asks_with_what_it_may_know():
  """Two late scores: round 2 knows the first one alone."""
  trigger = triggers.Trigger([], lambda s, x: [*s, x], lambda s, t: 1 + len(s))
  order = orders.order('top_down', 3, 0)
  asked = []

  def by_scores(depths, t, scores):
    asked.append((depths, t))
    return [tuple(bool(x) for x in row) for row in scores > 0]

  plain = schedules.schedule(trigger, order)
  assert schedules.delayed(plain, 1).by_scores is None
  made = schedules.schedule(trigger, order, budgets=(3,), by_scores=by_scores)
  made = schedules.delayed(made, 1)
  state = made.init
  for t in range(2):
    state = made.observe(state, t, 0.5)
  scores = np.array([[1, 0, 0], [0, 1, 1]])
  assert made.by_scores is not None
  found = made.by_scores(state, 2, [7, 8], scores)
  assert found == [(True, False, False), (False, True, True)]
  assert asked == [([2, 2], 2)]
