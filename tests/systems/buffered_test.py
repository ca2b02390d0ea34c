"""Asynchronous arrivals: hand cases, staleness, and that nobody is twice."""

import json

import numpy as np

from fedms_jax.systems import devices, selection
from fedms_jax.systems.buffered import Buffered, buffered
from tests.systems import times


def story(how, seconds, steps, select=None, **kwargs):
  """(second, client, staleness) of each report that came."""
  which = times.computing(*seconds)
  made = buffered(how, which, select or times.first(len(seconds)), **kwargs)
  found, _ = times.played(made, steps)
  now, out = 0.0, []
  for step, reports in enumerate(found):
    now += reports.seconds
    came = ~reports.lost
    out += [
      (now, int(i), step - int(v))
      for i, v in zip(reports.ids[came], reports.versions[came], strict=True)
    ]
  return out


def test_a_fast_and_a_slow_client():
  """One takes 1 s, the other 3, both in flight, a step at each report."""
  assert story(Buffered(1, 2), [1.0, 3.0], 5) == [
    (1.0, 0, 0),
    (2.0, 0, 0),
    (3.0, 0, 0),
    (3.0, 1, 3),
    (4.0, 0, 1),
  ]


def test_equal_clients_and_a_buffer_for_all_are_synchronous():
  found = story(Buffered(2, 2), [1.0, 1.0], 3)
  assert found == [(t, i, 0) for t in (1.0, 2.0, 3.0) for i in (0, 1)]


def test_a_free_slot_is_taken_at_once_with_the_newest_model():
  """A buffer of 2: at 1 s client 2 begins in the place of 0, within step 0."""
  found = story(Buffered(2, 2), [1.0, 4.0, 1.5], 1)
  assert found == [(2.5, 0, 0), (2.5, 2, 0)]


def test_no_report_that_is_too_old_is_taken_but_it_is_charged():
  which = times.computing(1.0, 3.0)
  made = buffered(Buffered(1, 2, late=2), which, times.first(2))
  found, _ = times.played(made, 5)
  (stale,) = [r for r in found if r.lost.any()]
  (place,) = np.flatnonzero(stale.lost)
  assert stale.ids[place] == 1 and stale.told['stale'] == 1
  np.testing.assert_array_equal(stale.spent[place], [1.0, 1.0, 1.0])
  fresh = buffered(Buffered(1, 2, late=0), which, times.first(2))
  for reports in times.played(fresh, 9)[0]:
    assert (reports.told['staleness_max'] == 0) and (~reports.lost).sum() == 1


def test_staleness_is_the_gap_of_versions_in_the_log():
  """As a log of who began when gives it, of devices by chance."""
  began, log = {}, []
  which = devices.lognormal(9, 1, speed=1.0, down=1.0, up=1.0)
  made = buffered(Buffered(2, 5), which, selection.uniform(0, 0, 9))
  state = made.init
  for step in range(12):
    busy = {task[1] for task in state['running']}

    def cost(ids, step=step, busy=busy):
      assert not busy & set(ids.tolist())  # nobody is twice in flight
      busy |= set(ids.tolist())
      began.update(dict.fromkeys(ids.tolist(), step))
      return times.cost(ids)

    state, reports = made.next(state, step, cost)
    log += [step - began[i] for i in reports.ids.tolist()]
    np.testing.assert_array_equal(
      reports.versions, [began[i] for i in reports.ids.tolist()]
    )
    assert len(reports.ids) == len(set(reports.ids.tolist())) == 2
    told = reports.told
    assert told['staleness_mean'] == np.mean(step - reports.versions)
    assert told['in_flight'] == len(state['running']) <= 5
  assert max(log) > 0


def test_it_goes_on_from_json_as_if_it_had_not_stopped():
  which = devices.lognormal(9, 1, speed=1.0, down=1.0, up=1.0)
  made = buffered(Buffered(2, 5), which, selection.uniform(0, 0, 9))
  whole, last = times.played(made, 8)
  state = made.init
  for step in range(8):
    state = json.loads(json.dumps(state))
    state, reports = made.next(state, step, times.cost)
    np.testing.assert_array_equal(reports.ids, whole[step].ids)
    assert reports.seconds == whole[step].seconds
  assert state == json.loads(json.dumps(last))


def test_who_leaves_frees_its_slot_when_it_leaves():
  which = times.always_on(times.computing(8.0, 8.0, 1.0), 2.0, None, None)
  made = buffered(Buffered(1, 2), which, times.first())
  (found,), _ = times.played(made, 1)
  assert found.ids.tolist() == [0, 2] and found.lost.tolist() == [True, False]
  assert found.seconds == 3.0 and found.told['offline'] == 1
  np.testing.assert_allclose(found.spent[0], [1.0, 0.25, 0.0])


def test_a_step_that_nobody_can_fill_ends():
  """Of one client, that is lost each time."""
  made = buffered(
    Buffered(2, 2), times.computing(1.0), times.first(1),
    lambda step, ids: np.ones(len(ids), bool),
  )  # fmt: skip
  found, _ = times.played(made, 2)
  assert [r.lost.tolist() for r in found] == [[True], [True]]


def test_other_names_for_equal_clients_change_names_alone():
  def renamed(names):
    plain = times.first(6)

    def choose(memory, draw):
      back = draw._replace(busy=np.array([names.index(i) for i in draw.busy]))
      ids, memory = plain.choose(memory, back)
      return np.sort([names[i] for i in ids]), memory

    return plain._replace(choose=choose)

  usual, other = (
    story(Buffered(3, 3), [1.0, 2.0] * 3, 4, renamed(names))
    for names in ([0, 1, 2, 3, 4, 5], [4, 1, 0, 5, 2, 3])
  )
  names = [4, 1, 0, 5, 2, 3]
  assert sorted((t, names[i], tau) for t, i, tau in usual) == sorted(other)
