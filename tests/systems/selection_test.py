"""Who is asked: uniform draws, and rules by what was reported."""

import numpy as np
import pytest

from fedms_jax.data import cohorts
from fedms_jax.systems import selection
from fedms_jax.systems.arrivals import Heard
from fedms_jax.systems.selection import Draw, Known
from fedms_jax.systems.waiting import Waiting, hearing, waiting
from tests.systems import times

NOBODY = np.zeros(0, np.int64)


def chosen(select, draw, memory=None):
  ids, _ = select.choose(select.init if memory is None else memory, draw)
  return ids.tolist()


def test_the_first_draw_is_the_cohort_of_the_round():
  select = selection.uniform(4, 1, 30)
  for step in range(3):
    expected = cohorts.sample_cohort(4, 1, step, 30, 7).tolist()
    assert chosen(select, Draw(step, 0, 7, NOBODY)) == expected
    assert chosen(select, Draw(step, 1, 7, NOBODY)) != expected


@pytest.mark.parametrize('online', [None, np.arange(10) % 2 == 0])
def test_who_is_busy_or_away_is_not_drawn_and_all_others_alike(online):
  select, busy = selection.uniform(0, 0, 10), np.array([0, 3])
  count = np.zeros(10)
  for step in range(2000):
    ids = chosen(select, Draw(step, 1, 2, busy, online))
    assert len(ids) == len(set(ids)) == 2
    count[ids] += 1
  free = np.array([i not in (0, 3) for i in range(10)])
  free &= True if online is None else online
  assert not count[~free].any()
  np.testing.assert_allclose(count[free], 4000 / free.sum(), rtol=0.15)


def test_fewer_come_where_fewer_are_free():
  select = selection.uniform(0, 0, 4)
  assert chosen(select, Draw(0, 1, 3, np.array([0, 1, 2]))) == [3]
  assert chosen(select, Draw(0, 1, 3, np.arange(4))) == []


def known(**losses):
  return {k[1:]: [v, 4.0, 1.0, 0] for k, v in losses.items()}


def test_power_of_choice_takes_the_largest_losses_of_its_candidates():
  rows = np.full(6, 5)
  rule = selection.power_of_choice(rows, 6)
  select = selection.by(0, 0, 6, rule)
  memory = known(c0=1.0, c1=9.0, c2=3.0, c3=2.0, c4=8.0, c5=0.5)
  assert chosen(select, Draw(0, 0, 2, NOBODY), memory) == [1, 4]
  # Who has never reported comes first.
  del memory['5']
  assert chosen(select, Draw(0, 0, 2, NOBODY), memory) == [1, 5]
  assert chosen(select, Draw(0, 0, 2, np.array([1])), memory) == [4, 5]


def test_of_few_candidates_the_loss_decides_less_and_rows_more():
  rows = np.array([1, 1, 1, 1, 96])
  select = selection.by(0, 0, 5, selection.power_of_choice(rows, 2))
  memory = known(c0=1.0, c1=9.0, c2=3.0, c3=2.0, c4=0.1)
  found = [chosen(select, Draw(t, 0, 1, NOBODY), memory) for t in range(50)]
  assert [4] not in found  # there is always another candidate, of larger loss
  assert {tuple(x) for x in found} == {(0,), (1,), (2,), (3,)}
  alone = selection.by(0, 0, 5, selection.power_of_choice(rows, 1))
  ids = [chosen(alone, Draw(t, 0, 1, NOBODY), memory) for t in range(50)]
  assert ids.count([4]) > 40


def test_oort_prefers_large_losses_and_punishes_slow_clients():
  """At step 0, in which all reported, by hand: T is the median, 2 s."""
  how = selection.Oort(patience=0.5, clip=1.0)
  some = [Known(4.0, 2.0, 1.0, 0), Known(2.0, 2.0, 2.0, 0),
          Known(4.0, 2.0, 4.0, 0)]  # fmt: skip
  found = selection.utility(how, some, 0)
  age = np.sqrt(0.1 * np.log(2))
  np.testing.assert_allclose(
    found, [1 + age, 0.5 + age, (1 + age) / 4], rtol=1e-6
  )


def test_oort_explores_less_and_less():
  rule = selection.oort(selection.Oort(explore=1.0, decay=0.5, least=0.0))
  select = selection.by(0, 0, 40, rule)
  memory = known(**{f'c{i}': 1.0 for i in range(20)})
  new = [
    sum(i >= 20 for i in chosen(select, Draw(t, 0, 8, NOBODY), memory))
    for t in range(4)
  ]
  assert new == [8, 4, 2, 1]
  assert len(chosen(select, Draw(50, 0, 30, NOBODY), memory)) == 30


def test_oort_takes_nobody_whose_utility_is_far_below_the_last_one():
  rule = selection.oort(selection.Oort(explore=0.0, least=0.0, clip=1.0))
  select = selection.by(0, 0, 4, rule)
  memory = known(c0=9.0, c1=8.9, c2=8.8, c3=0.1)
  for step in range(20):
    assert 3 not in chosen(select, Draw(step, 0, 2, NOBODY), memory)


@pytest.mark.parametrize('ids', [[0, 0], [0, 1, 2], [9], [3]])
def test_a_rule_that_breaks_its_word_is_refused(ids):
  select = selection.by(0, 0, 5, lambda known, free, draw, rng: ids)
  with pytest.raises(ValueError, match='rule of a selection gave'):
    chosen(select, Draw(0, 0, 2, np.array([3])))


def test_what_clients_report_reaches_the_rule():
  """With the seconds that each took, and the step it reported in."""
  seen = []

  def rule(known, free, draw, rng):
    seen.append(dict(known))
    return free[: draw.count]

  select = selection.by(0, 0, 3, rule)
  made = waiting(Waiting(2), times.computing(2.0, 5.0, 1.0), select)
  state, reports = made.next(made.init, 0, times.cost)
  assert made.heard is not None
  said = Heard(0, reports.ids, np.array([0.7, 0.9]), np.array([6.0, 0.0]))
  state = made.heard(state, said)
  made.next(state, 1, times.cost)
  # The other one has trained on nothing.
  assert seen == [{}, {0: Known(0.7, 6.0, 2.0, 0)}]
  assert hearing(selection.uniform(0, 0, 3)) is None
