"""FFDAPT's windows: their widths, and that they tile the stack."""

import numpy as np
import pytest

from fedms_jax import schedules
from fedms_jax.schedules import triggers, windows

SIZES = np.array([10, 20, 30, 60, 0, 40])


def frozen(sets):
  return [tuple(b for b, active in enumerate(s) if not active) for s in sets]


def test_a_window_is_as_wide_as_the_share_of_the_data():
  assert windows.widths([10, 20, 30], 6, 1 / 3, 5) == [1, 2, 3]
  assert windows.widths([10, 20, 30], 6, 1 / 3, 2) == [1, 2, 2]
  assert windows.widths([5, 5, 5, 5], 6, 1 / 3, 5) == [2, 2, 2, 2]
  assert windows.widths([1, 2], 6, 0.0, 5) == [0, 0]


def test_the_windows_of_a_round_lie_one_behind_the_other():
  made = windows.frozen_windows(SIZES, 6, 1 / 3, 5)
  first = made.active(made.init, 0, [0, 1, 2])
  assert frozen(first) == [(0,), (1, 2), (3, 4, 5)]
  state = made.planned(made.init, 0, first)
  second = made.active(state, 1, [1, 2])
  assert state == {'start': 0}
  assert frozen(second) == [(0, 1), (2, 3)]
  state = made.planned(state, 1, second)
  assert state == {'start': 4}
  assert frozen(made.active(state, 2, [1, 2])) == [(4, 5), (0, 1)]


def test_no_share_freezes_nothing():
  made = windows.frozen_windows(SIZES, 4, 0.0)
  assert made.active(made.init, 0, [0, 3]) == [(True,) * 4] * 2


def test_what_is_planned_reaches_a_schedule_that_sees_scores_late():
  inner = windows.frozen_windows(SIZES, 6, 1 / 3, 5)
  late = schedules.delayed(inner, 1)
  state, plain = late.init, inner.init
  for t in range(4):
    sets = late.active(state, t, [0, 1])
    assert sets == inner.active(plain, t, [0, 1])
    state, plain = late.planned(state, t, sets), inner.planned(plain, t, sets)
    state = late.observe(state, t, 0.5)
  assert plain['start'] == state['inner']['start'] == 4 * 4 % 6


def test_what_is_planned_reaches_a_schedule_that_may_end():
  inner = windows.frozen_windows(SIZES, 6, 1 / 3, 5)
  ends = schedules.until_flat(inner, 9, 0.1)
  state = ends.init
  assert ends.planned is not None
  for t in range(2):
    sets = ends.active(state, t, [0, 1])
    state = ends.observe(ends.planned(state, t, sets), t, 0.5)
  assert state['inner']['start'] == 2 * 4 % 6 and state['since'] == 1
  plain = schedules.schedule(triggers.dense(6), range(6))
  assert schedules.until_flat(plain, 9, 0.1).planned is None


def test_all_blocks_are_never_frozen():
  with pytest.raises(ValueError, match='`most`=6'):
    windows.frozen_windows(SIZES, 6, 1 / 3, 6)
