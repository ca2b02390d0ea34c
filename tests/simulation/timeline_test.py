"""The timeline: spans add up, and cost nothing when nobody measures."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import pytest

from fedms_jax.simulation import timeline
from fedms_jax.simulation.timeline import Timeline
from tests import world


class Clock:
  """A clock that a test moves."""

  def __init__(self, monkeypatch):
    self.now = 0.0
    monkeypatch.setattr(timeline.time, 'perf_counter', lambda: self.now)

  def spend(self, seconds):
    self.now += seconds


@pytest.fixture
def clock(monkeypatch):
  return Clock(monkeypatch)


def test_spans_are_disjoint_and_add_up(clock):
  with Timeline().measuring() as line:
    for number in timeline.rounds('global', range(2)):
      clock.spend(1)  # in no span
      with timeline.span('train'):
        clock.spend(2)
        with timeline.span('reduce'):
          clock.spend(3)
        clock.spend(4)
      with timeline.span('train'):
        clock.spend(number)
  assert line.seconds['global'] == [
    {'sample': 0, 'train': 6, 'reduce': 3, 'round': 10},
    {'sample': 0, 'train': 7, 'reduce': 3, 'round': 11},
  ]


def test_a_round_begins_with_the_wait_for_its_cohort(clock):
  def slow():
    for item in 'abc':
      clock.spend(2)
      yield item
    clock.spend(9)  # finding that there is no other

  seen = []
  with Timeline().measuring() as line:
    for item in timeline.rounds('global', slow()):
      seen.append(item)
      clock.spend(1)
  assert seen == list('abc')
  assert line.seconds['global'][:2] == [{'sample': 2, 'round': 3}] * 2


def test_rounds_before_the_measured_ones_are_dropped_in_each_stage(clock):
  traced = []

  @contextlib.contextmanager
  def trace(stage):
    traced.append(('begin', stage, clock.now))
    yield
    traced.append(('end', stage, clock.now))

  line = Timeline(2, trace)
  with line.measuring():
    for stage in ('global', 'personal'):
      for number in timeline.rounds(stage, range(4)):
        clock.spend(10 + number)
      clock.spend(100)  # between stages
  assert [r['round'] for r in line.seconds['global']] == [12, 13]
  assert line.seconds['personal'] == line.seconds['global']
  assert traced == [
    ('begin', 'global', 21), ('end', 'global', 46),
    ('begin', 'personal', 167), ('end', 'personal', 192),
  ]  # fmt: skip


def test_unmeasured_spans_wait_for_nothing_and_change_nothing(monkeypatch):
  def refuse(value):
    raise AssertionError('waited')

  monkeypatch.setattr(jax, 'block_until_ready', refuse)
  with timeline.span('train') as done:
    value = jnp.ones(3)
    assert done(value) is value
  assert list(timeline.rounds('global', iter('ab'))) == ['a', 'b']
  with Timeline().measuring(), timeline.span('train') as done:
    with pytest.raises(AssertionError, match='waited'):
      done(jnp.ones(3))


def test_a_timeline_measures_its_own_thread():
  with Timeline().measuring() as line:
    other = threading.Thread(target=lambda: timeline.span('load').__enter__())
    other.start()
    other.join()
    for _ in timeline.rounds('global', range(1)):
      pass
  assert set(line.seconds['global'][0]) == {'sample', 'round'}


def test_a_span_has_a_known_name():
  with pytest.raises(ValueError, match="'tran' is no span; allowed: sample"):
    with timeline.span('tran'):
      pass


def test_measuring_changes_no_number():
  """Also where columns are sent from host memory."""
  stages = world.stages(1)[:1]
  plain = world.simulate(stages, scope='round')[1]
  with Timeline().measuring() as line:
    watched = world.simulate(stages, scope='round')[1]
  world.same(plain.roles, watched.roles)
  (found,) = line.seconds['global']
  assert {'load', 'transfer', 'columns', 'train', 'evaluate'} <= set(found)
  total = found.pop('round')
  assert 0 < sum(found.values()) <= total
