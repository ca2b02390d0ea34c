"""Devices and traces: what they are read from, and that time alone decides."""

import json
import pickle

import numpy as np
import pytest

from fedms_jax.systems import availability, devices, participation
from fedms_jax.systems.arrivals import Tasks


def tasks(down, flops, up):
  return Tasks(*(np.array([float(x)]) for x in (down, flops, up)), np.ones(1))


def test_a_task_takes_what_its_phases_take():
  made = devices.of_table(
    {'a': {'speed': 10.0, 'down': 4.0, 'up': 2.0}, 'b': {'speed': 5.0,
     'down': 4.0, 'up': 2.0}}, 3,
  )  # fmt: skip
  found = made.phases(np.array([0]), tasks(8, 30, 1))
  np.testing.assert_array_equal(found, [[2.0, 3.0, 0.5]])
  # Of two devices the third client has the first; half the speed is twice.
  third = made.phases(np.array([2]), tasks(8, 30, 1))
  np.testing.assert_array_equal(third, found)
  assert made.phases(np.array([1]), tasks(8, 30, 1))[0, 1] == 6.0


def test_devices_without_a_limit_take_no_time():
  made = devices.instant(2)
  assert not made.phases(np.arange(1), tasks(8, 30, 1)).any()


def test_fedscale_counts_forward_passes_and_kilobits():
  """20 ms for one example of a model of 4 MFLOPs; 100 kbit/s."""
  found = {1: {'computation': 20.0, 'communication': 100.0}}
  made = devices.of_table(found, 1, reference=4e6)
  assert made.speed[0] == pytest.approx(2e8)
  assert made.down[0] == made.up[0] == 100 * 1024 / 8
  with pytest.raises(ValueError, match='`reference`'):
    devices.of_table(found, 1)


FORMS = {
  'json': lambda x: json.dumps(x).encode(),
  'lines': lambda x: '\n'.join(
    json.dumps({'id': k} | v) for k, v in x.items()
  ).encode(),
  'pickle': lambda x: pickle.dumps(x, 4),
  'old pickle': lambda x: pickle.dumps(x, 2),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('count', [1, 2])
def test_a_file_of_any_form_is_the_same_table(form, count, tmp_path):
  one = {'speed': 1.0, 'down': 2.0, 'up': 3.0}
  table = {str(i): one | {'speed': 1.0 + i} for i in range(count)}
  path = tmp_path / 'devices'
  path.write_bytes(FORMS[form](table))
  found = devices.of_table(devices.table(path), count)
  assert found.speed.tolist() == [1.0, 2.0][:count]


class Trap:
  def __reduce__(self):
    return print, ('it ran',)


@pytest.mark.parametrize(
  'data',
  [
    pickle.dumps({1: Trap()}),
    pickle.dumps({1: np.float64(2)}),
    b'\x80\x04nonsense',
    b'no json',
    b'[1, 2]',
    b'{}',
    b'[]',
    b'7',
  ],
)
def test_nothing_else_is_read_and_nothing_in_a_file_is_run(
  data, tmp_path, capsys
):
  path = tmp_path / 'devices'
  path.write_bytes(data)
  with pytest.raises(ValueError, match='devices'):
    devices.table(path)
  assert 'it ran' not in capsys.readouterr().out
  with pytest.raises(ValueError, match='cannot be read'):
    devices.table(tmp_path / 'none')


@pytest.mark.parametrize(
  'one',
  [
    {'speed': 0.0, 'down': 1.0, 'up': 1.0},
    {'speed': float('nan'), 'down': 1.0, 'up': 1.0},
    {'speed': float('inf'), 'down': 1.0, 'up': 1.0},
    {'speed': 1.0, 'down': 1.0},
    {'speed': None, 'down': 1.0, 'up': 1.0},
    7,
    {'computation': 0, 'communication': 1.0},
  ],
)
def test_a_device_that_is_none_is_named(one):
  with pytest.raises(ValueError, match="device 'x' lacks"):
    devices.of_table({'x': one}, 1, 1.0)


def test_lognormal_devices_have_their_medians_and_follow_from_the_seed():
  made = devices.lognormal(4001, 1, speed=3.0, down=8.0, up=2.0)
  assert np.median(made.speed) == pytest.approx(3.0, rel=0.1)
  assert np.std(np.log(made.speed)) == pytest.approx(0.6, rel=0.1)
  np.testing.assert_allclose(made.down / made.up, 4.0)
  again = devices.lognormal(4001, 1, speed=3.0, down=8.0, up=2.0)
  other = devices.lognormal(4001, 2, speed=3.0, down=8.0, up=2.0)
  np.testing.assert_array_equal(made.speed, again.speed)
  assert (made.speed != other.speed).all()


TRACE = {
  'x': {'active': [10, 40], 'inactive': [20, 50], 'finish_time': 60},
  'y': {'active': [0, 90], 'inactive': [30], 'finish_time': 100},
}


def slowly(one, time):
  """Whether a device is on, by the definition."""
  ends = [*one['inactive'], one['finish_time']]
  within = time % one['finish_time']
  pairs = zip(one['active'], ends, strict=False)
  return any(a <= within <= b for a, b in pairs)


def test_time_alone_decides_who_is_online_whatever_was_asked_before():
  """Jumps forward and back give what the definition gives."""
  made = availability.of_fedscale(TRACE, 3)
  rng = np.random.default_rng(0)
  for time in rng.uniform(0, 1000, 300).round(1):
    expected = [slowly(TRACE[k], time) for k in 'xyx']
    assert made.online(np.arange(3), time).tolist() == expected, time


def test_how_long_and_from_when():
  made = availability.of_fedscale(TRACE, 2)
  both = np.arange(2)
  assert made.on_for(both, 12.0).tolist() == [8.0, 18.0]
  assert made.on_for(both, 30.0).tolist() == [0.0, 0.0]
  # From 90 on, and over the end of its period.
  assert made.on_for(both, 95.0)[1] == 35.0
  assert made.next_on(both, 30.0).tolist() == [40.0, 30.0]
  assert made.next_on(both, 31.0).tolist() == [40.0, 90.0]
  assert made.next_on(both, 51.0).tolist() == [70.0, 90.0]
  assert made.next_on(both, 45.0).tolist() == [45.0, 90.0]


def test_who_is_always_on_and_who_has_no_trace():
  made = availability.traces(
    [([0.0], [10.0], 10.0)], np.array([0, -1]), np.array([3.0, 0.0])
  )
  for time in (0.0, 9.9, 10.0, 1e6):
    assert made.online(np.arange(2), time).all()
    assert np.isinf(made.on_for(np.arange(2), time)).all()


@pytest.mark.parametrize(
  'one',
  [
    {'active': [], 'inactive': [], 'finish_time': 10},
    {'active': [5], 'inactive': [2], 'finish_time': 10},
    {'active': [1, 4], 'inactive': [6, 8], 'finish_time': 10},
    {'active': [1], 'inactive': [20], 'finish_time': 10},
    {'active': [1, 2, 3], 'inactive': [2], 'finish_time': 10},
    {'active': [1], 'inactive': [2]},
    {'active': ['x'], 'inactive': [2], 'finish_time': 3},
  ],
)
def test_traces_that_are_none_are_refused(one):
  with pytest.raises(ValueError, match='trace 0 is no list|availability lacks'):
    availability.of_fedscale({'x': one}, 1)


def test_more_clients_are_online_at_night():
  """Of one client whose day begins with the trace."""
  made = availability.diurnal(400, 0)
  made = made._replace(shift=np.zeros(400))
  share = {
    name: np.mean([
      made.online(np.arange(400), availability.HOUR * (24 * day + hour)).mean()
      for day in range(1, 6) for hour in hours
    ])
    for name, hours in (('night', (0, 2, 4)), ('day', (12, 14, 16)))
  }  # fmt: skip
  assert 0.05 < share['day'] < 0.6 * share['night'] < 0.6
  again = availability.diurnal(400, 0)
  np.testing.assert_array_equal(again.begins, made.begins)


def test_gini_and_shares_of_hand_cases():
  assert participation.gini(np.array([2, 2, 2])) == 0.0
  assert participation.gini(np.array([0, 0, 0, 8])) == 0.75
  assert participation.gini(np.zeros(3)) == 0.0
  counts = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 11])
  assert participation.top_share(counts) == 13 / 20


def test_deciles_are_of_clients_that_have_a_score():
  seconds = np.array([5.0, 1.0, 3.0, 9.0])
  found = participation.deciles(seconds, [0.5, None, 0.3, 0.9])
  assert found == {'fast': 0.3, 'slow': 0.9}
  assert participation.deciles(seconds, [None] * 4)['fast'] is None
