"""When a stage ends early: the rule by itself."""

import math

import pytest

from fedms_jax.simulation import stopping
from fedms_jax.simulation.stopping import Stop


def watched(stop, values):
  """The state after a record of each value; None: a round without one."""
  watch = stopping.begin()
  for number, value in enumerate(values):
    record = {'round': number}
    record |= {} if value is None else {'m': value}
    watch = stopping.observe(stop, watch, record)
  return watch


def test_a_target_is_reached_from_either_side():
  up = watched(Stop('m', target=0.5), [0.1, math.nan, 0.5, 0.9])
  assert up['at'] == 2
  down = watched(Stop('m', target=0.5, lower=True), [0.9, 0.6, 0.4])
  assert down['at'] == 2
  assert watched(Stop('m', target=0.5), [0.1, 0.4])['at'] is None


def test_patience_counts_rounds_since_the_best_one():
  stop = Stop('m', patience=3)
  assert watched(stop, [0.1, 0.3, 0.2, 0.3])['at'] is None
  assert watched(stop, [0.1, 0.3, 0.2, 0.3, 0.3])['at'] == 4  # equal: no gain
  assert watched(stop, [0.1, 0.3, 0.2, 0.3, 0.4])['best'] == 0.4
  lower = stop._replace(lower=True)
  assert watched(lower, [0.3, 0.2, 0.3, 0.4, 0.25])['at'] == 4
  least = stop._replace(delta=0.15)
  assert watched(least, [0.1, 0.2, 0.24, 0.2])['at'] == 3
  # Rounds that are not measured pass as well.
  assert watched(stop, [0.3, None, None, 0.1])['at'] == 3


def test_what_is_over_stays_over():
  stop = Stop('m', target=0.5)
  assert watched(stop, [0.6, 0.1, 0.7])['at'] == 0
  assert stopping.observe(None, stopping.begin(), {'round': 0}) == (
    stopping.begin()
  )


def test_a_stage_ends_one_round_after_what_ends_it():
  watch = watched(Stop('m', target=0.5), [0.6])
  assert [stopping.over(watch, n) for n in (1, 2, 3)] == [False, True, True]
  assert not stopping.over(stopping.begin(), 99)


def test_what_a_target_took_is_of_the_rounds_until_then():
  cost = dict(bytes_up=10.0, bytes_down=5.0, client_flops=2.0, wall_seconds=0.5)
  records = [{'stage': 'pretrain', 'round': 0, 'm': 9.0}] + [
    {'stage': stage, 'round': t, 'depth': 1, 'm': value} | cost
    for stage, t, value in (('a', 0, 0.1), ('a', 1, None), ('b', 0, 0.7))
  ]
  found = stopping.to_target(Stop('m', target=0.5), records)
  told = found['target']
  assert (told['reached'], told['stage'], told['rounds']) == (True, 'b', 3)
  assert told['bytes_up'] == 30 and told['client_flops'] == 6
  assert found['target_seconds'] == pytest.approx(1.5)
  missed = stopping.to_target(Stop('m', target=0.8), records)
  assert missed['target']['reached'] is False
  assert missed['target_seconds'] is None
  assert stopping.to_target(Stop('m', patience=3), records) == {}
