"""Bounds on epsilon and scores of membership, against published values."""

import numpy as np
import pytest

from fedms_jax.systems import audit


@pytest.mark.parametrize(
  ('m', 'r', 'v', 'want'),
  [(1000, 100, 95, 2.16), (1000, 100, 100, 3.46), (1000, 1000, 700, 0.73)],
)
def test_the_bound_of_one_run_is_the_published_one(m, r, v, want):
  assert audit.one_run(m, r, v, 1e-5) == pytest.approx(want, abs=0.006)


def test_the_bound_of_one_run_is_monotone_and_of_pure_dp_the_binomial_one():
  found = [audit.one_run(200, 100, v, 1e-6) for v in range(40, 101, 10)]
  assert found == sorted(found) and found[0] == 0.0 < found[-1]
  # delta = 0 and all right: p = (e^eps / (1 + e^eps))^r = 0.05
  chance = 0.05 ** (1 / 20)
  want = np.log(chance / (1 - chance))
  assert audit.one_run(20, 20, 20, 0.0) == pytest.approx(want, rel=1e-6)
  assert audit.one_run(20, 20, 20, 1e-3) < want
  with pytest.raises(ValueError, match='not in this order'):
    audit.one_run(10, 20, 5, 0.0)


def test_a_bound_holds_as_often_as_it_says():
  """Scores of a mechanism without a leak have a bound over 0 in at most the
  share of the runs that the significance allows."""
  rng = np.random.default_rng(0)
  wrong = 0
  for _ in range(300):
    included = rng.random(60) < 0.5
    bound, _, _ = audit.one_run_of(rng.normal(size=60), included, 1e-5)
    wrong += bound > 0
  assert wrong <= 0.05 * 300 + 3 * np.sqrt(300 * 0.05)
  included = rng.random(60) < 0.5
  bound, guesses, right = audit.one_run_of(included * 1.0, included, 1e-5)
  assert bound > 1.5 and right >= guesses - 2 * abs(30 - included.sum())


def test_two_gaussians_are_told_apart_as_often_as_they_are():
  """Of mu = 1: AUC Phi(1 / sqrt 2), hits at 1 % Phi(1 - 2.326)."""
  rng = np.random.default_rng(1)
  inside, outside = 1 + rng.normal(size=40_000), rng.normal(size=40_000)
  assert audit.auroc(inside, outside) == pytest.approx(0.7602, abs=0.006)
  hits = audit.true_positives(inside, outside, 0.01)
  assert hits == pytest.approx(0.0924, abs=0.01)
  delta = 1e-5
  found = audit.gaussian(inside, outside, delta)
  assert found == pytest.approx(audit.gdp_epsilon(1.0, delta), rel=0.03)
  assert audit.gdp_epsilon(1.0, 1e-5) == pytest.approx(4.377, abs=0.01)
  assert audit.gaussian(outside - 9, outside, delta) == 0.0
  assert audit.gdp_epsilon(1e-9, 1e-5) == 0.0


def test_ties_are_half_a_hit():
  assert audit.auroc(np.zeros(5), np.zeros(7)) == 0.5
  assert audit.true_positives(np.zeros(5), np.zeros(7), 0.01) == 0.0


def runs(shift, count=24, rows=400, seed=0):
  """Log odds that move by `shift` where a run has trained on a row."""
  rng = np.random.default_rng(seed)
  member = rng.random((count, rows)) < 0.5
  center = 3 * rng.normal(size=(1, rows))
  return center + rng.normal(size=(count, rows)) + shift * member, member


@pytest.mark.parametrize('count', [6, 24, 64])
def test_lira_finds_what_there_is_and_nothing_else(count):
  for shift, low, high in ((0.0, 0.47, 0.53), (2.0, 0.75, 0.95)):
    phi, member = runs(shift, count, rows=2400 // count * 4)
    scores = audit.lira(phi, member)
    known = np.isfinite(scores)
    found = audit.auroc(scores[known & member], scores[known & ~member])
    assert low < found < high
    # The plain odds hardly tell, for rows differ by more than the shift.
    assert audit.auroc(phi[member], phi[~member]) < 0.75


def test_lira_by_hand():
  phi = np.array([[0.0], [2.0], [1.0], [5.0], [7.0], [6.0]])
  member = np.array([[False], [False], [False], [True], [True], [True]])
  found = audit.lira(phi, member)[2, 0]
  # Others out: 0 and 2, at 1 with a deviation of 1; in: 5 and 7, at 6, of 1.
  assert found == pytest.approx(-((1 - 6) ** 2) / 2)


def test_a_row_that_too_few_runs_have_is_not_scored():
  phi, member = runs(1.0, count=6, rows=3)
  member[:, 0] = [True, False, False, False, False, False]
  assert not np.isfinite(audit.lira(phi, member)[:, 0]).any()
