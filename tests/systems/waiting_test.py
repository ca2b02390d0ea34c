"""Rounds that wait: who is kept, when they end, what is wasted."""

import numpy as np
import pytest

from fedms_jax.systems.waiting import Waiting, waiting
from tests.systems import times


def one(how, seconds, cost=times.cost, lost=None, online=None):
  """The reports of the first round."""
  which = times.computing(*seconds)
  if online is not None:
    which = times.always_on(which, *online)
  made = waiting(how, which, times.first(len(seconds)), lost)
  (reports,), _ = times.played(made, 1, cost)
  return reports


def kept(reports):
  return reports.ids[~reports.lost].tolist()


def test_a_round_takes_as_long_as_its_slowest_client():
  found = one(Waiting(3), [2.0, 5.0, 1.0])
  assert kept(found) == [0, 1, 2] and found.seconds == 5.0
  twice = one(Waiting(3), [1.0, 2.5, 0.5])
  assert twice.seconds == found.seconds / 2


def test_over_selection_takes_the_first_and_wastes_the_rest():
  """1.3 of 3 are 4; the slowest is told to stop in the middle."""
  found = one(Waiting(3, over=1.3), [2.0, 4.0, 1.0, 8.0])
  assert found.ids.tolist() == [0, 1, 2, 3] and kept(found) == [0, 1, 2]
  assert found.seconds == 4.0 <= one(Waiting(4), [2.0, 4.0, 1.0, 8.0]).seconds
  np.testing.assert_allclose(found.spent[3], [1.0, 0.5, 0.0])
  assert found.told['cancelled'] == 1


def test_of_equal_ones_the_smaller_id_is_first():
  found = one(Waiting(1, over=2.0), [3.0, 3.0])
  assert kept(found) == [0]


@pytest.mark.parametrize('least,ids,failed', [(0.6, [0, 2], 0), (0.7, [], 1)])
def test_who_misses_the_deadline_is_not_waited_for(least, ids, failed):
  """And if too few have met it the round changes nothing."""
  found = one(Waiting(3, deadline=4.0, least=least), [2.0, 16.0, 4.0])
  assert kept(found) == ids and found.seconds == 4.0
  assert found.told['late'] == 1 and found.told['failed'] == failed
  np.testing.assert_allclose(found.spent[1], [1.0, 0.25, 0.0])
  np.testing.assert_allclose(found.spent[0], [1.0, 1.0, 1.0])


def test_a_round_that_everybody_has_reported_in_ends_before_its_deadline():
  assert one(Waiting(2, deadline=50.0), [2.0, 3.0]).seconds == 3.0


def test_partial_work_is_the_steps_that_fit():
  """10 steps of 1 s each, 4.5 s: four of them."""
  found = one(
    Waiting(2, deadline=4.5, partial=True),
    [10.0, 2.0],
    lambda ids: times.cost(ids, steps=10),
  )
  assert kept(found) == [0, 1]
  np.testing.assert_allclose(found.share, [0.4, 1.0])
  assert found.seconds == 4.0 and found.told['partial'] == 1


def test_who_has_no_time_for_one_step_is_late_all_the_same():
  found = one(Waiting(1, deadline=0.5, partial=True), [2.0])
  assert kept(found) == [] and found.told['late'] == 1


def test_who_leaves_is_lost_when_it_leaves():
  """The server does not wait for it; it waits for who comes."""
  found = one(Waiting(2), [8.0, 3.0], online=[2.0, None])
  assert kept(found) == [1] and found.seconds == 3.0
  assert found.told['offline'] == 1
  np.testing.assert_allclose(found.spent[0], [1.0, 0.25, 0.0])


def test_nobody_online_is_waited_for():
  """Traces of 1000 s, online in the first 2."""
  which = times.always_on(times.computing(1.0), 2.0)
  made = waiting(Waiting(1), which, times.first())
  found, state = times.played(made, 3)
  assert [r.seconds for r in found[:2]] == [1.0, 1.0]
  assert [len(r.ids) for r in found] == [1, 1, 1]
  # At 2 s it is online still, and leaves; the round is over at once.
  assert found[2].lost.all() and state['now'] == 2.0
  later = made.next(state | {'now': 3.0}, 3, times.cost)
  assert later[0]['now'] == pytest.approx(1001.0)
  assert later[1].seconds == pytest.approx(998.0)


def test_who_is_lost_has_done_all_and_sent_nothing():
  found = one(Waiting(2), [2.0, 3.0], lost=lambda step, ids: ids == 1)
  assert kept(found) == [0] and found.seconds == 3.0
  np.testing.assert_allclose(found.spent[1], [1.0, 1.0, 0.0])


def test_a_later_stage_goes_on_with_the_clock():
  made = waiting(Waiting(2), times.computing(1.0, 2.0), times.first(2))
  _, state = times.played(made, 3)
  assert state['now'] == 6.0 and state['count'] == {'0': 3, '1': 3}
  assert made.carry(state)['now'] == 6.0
  assert made.carry(None) == made.init
