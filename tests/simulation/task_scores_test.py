"""Numbers of a matrix of scores."""

import numpy as np
import pytest

from fedms_jax.simulation import task_scores

R = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.7, 0.9]]


def test_a_matrix_by_hand():
  found = task_scores.scores(R, [0.1] * 3)
  expected = {
    'acc': 0.7333, 'aia': 0.7944, 'forgetting': 0.2, 'bwt': -0.2, 'fwt': 0.15,
    'learning': 0.8667,
  }  # fmt: skip
  assert found == pytest.approx(expected, abs=1e-4)
  assert found.keys() == task_scores.FORMULAS.keys()


def test_forgetting_is_from_the_best_score_in_time():
  """Over steps and not over tasks; the last step is none to forget from."""
  found = task_scores.scores([[0.9, 0.3], [0.85, 0.6]], [0.0] * 2)
  assert found['forgetting'] == pytest.approx(0.05)
  better = task_scores.scores([[0.5, 0.0], [0.9, 0.6]], [0.0] * 2)
  assert better['forgetting'] == pytest.approx(-0.4)
  assert better['bwt'] == pytest.approx(0.4)
  rise = [[0.5, 0, 0], [0.8, 0.5, 0], [0.6, 0.5, 0.5]]
  assert task_scores.scores(rise, [0] * 3)['forgetting'] == pytest.approx(0.1)
  assert task_scores.scores(rise, [0] * 3)['bwt'] == pytest.approx(0.05)


def test_who_says_always_the_same_forgets_nothing():
  found = task_scores.scores([[0.2, 0.5, 0.3]] * 3, [0.2, 0.5, 0.3])
  assert found['forgetting'] == found['bwt'] == found['fwt'] == 0


def test_names_of_tasks_do_not_matter():
  """Tasks in another order, and met in that order, give the same numbers."""
  turned = [2, 0, 1]
  other = np.asarray(R)[:, turned]
  first = [turned.index(t) for t in range(3)]
  first = np.argsort(first)
  a = task_scores.scores(R, [0.1] * 3)
  b = task_scores.scores(other, [0.1] * 3, first=first)
  assert a == pytest.approx(b)


def test_losses_are_scores_with_a_sign():
  nats = -np.array([[2.0, 4.0], [2.5, 1.0]])
  found = task_scores.scores(nats, -np.array([5.0, 5.0]))
  assert found['forgetting'] == pytest.approx(0.5)
  assert found['fwt'] == pytest.approx(1.0)


def test_one_task_has_nothing_to_forget():
  found = task_scores.scores([[0.7]], [0.1])
  assert found['forgetting'] is found['bwt'] is found['fwt'] is None
  assert found['acc'] == found['aia'] == pytest.approx(0.7)


def test_what_is_not_known_does_not_count():
  found = task_scores.scores([[0.7, None], [0.6, 0.5]], [None, 0.1])
  assert found['fwt'] is None and found['forgetting'] == pytest.approx(0.1)


def test_intransigence_is_what_all_rows_would_have_given():
  found = task_scores.intransigence(R, [0.95, 0.8, 0.85])
  np.testing.assert_allclose(found, [0.05, 0.0, -0.05], atol=1e-9)


def test_a_sliding_mean():
  assert task_scores.sliding([1, 0, 0, 1], 2) == [1, 0.5, 0, 0.5]
