"""Who is best, who is not worse, and what no other row beats."""

import numpy as np
import pytest
from scipy import stats

from fedms_jax.report import runs, statistics
from tests.report import finished


def test_the_paired_test_is_that_of_scipy_and_of_the_textbook():
  rng = np.random.default_rng(0)
  for size in (6, 20, 90):
    a, b = rng.normal(0.1, 1, size), rng.normal(0, 1, size)
    found = statistics.paired(a, b)
    wanted = stats.ttest_rel(a, b, alternative='greater').pvalue
    assert found == pytest.approx(wanted, rel=1e-9)
    d = a - b
    t = d.mean() / (d.std(ddof=1) / np.sqrt(size))
    assert found == pytest.approx(stats.t.sf(t, size - 1), rel=1e-9)


def test_pairs_matter():
  """What is better for each client by little is better, however much the
  clients differ; with pairs broken up it is not to be seen."""
  clients = np.linspace(0, 1, 30)
  better = clients + 0.01 + np.tile([0.001, -0.001], 15)
  assert statistics.paired(better, clients) < 1e-6
  assert statistics.paired(better[::-1], clients) > 0.3


@pytest.mark.parametrize(('gap', 'p'), [(0.0, 1.0), (0.5, 0.0), (-0.5, 1.0)])
def test_differences_that_are_all_equal(gap, p):
  assert statistics.paired(np.ones(8) + gap, np.ones(8)) == p


def test_it_errs_as_often_as_it_says():
  """Of rows that are equally good, 5 % are called worse."""
  rng = np.random.default_rng(1)
  found = [statistics.paired(*rng.normal(size=(2, 30))) for _ in range(400)]
  assert np.mean(np.array(found) < statistics.LEVEL) == pytest.approx(
    statistics.LEVEL, abs=0.03
  )


def rows(tmp_path, seeds):
  finished.comparison(tmp_path, seeds)
  return {row.label: row for row in runs.comparison(tmp_path).rows}


def test_clients_are_the_pairs_of_few_seeds_and_seeds_of_many(tmp_path):
  few = rows(tmp_path / 'few', (0, 1, 2))
  verdict = statistics.verdict(few['good'], few['cheap'])
  assert (verdict.unit, verdict.pairs, verdict.worse) == ('clients', 36, True)
  assert not statistics.verdict(few['good'], few['as good']).worse
  many = rows(tmp_path / 'many', range(6))
  verdict = statistics.verdict(many['good'], many['bad <b>'])
  assert (verdict.unit, verdict.pairs, verdict.worse) == ('seeds', 6, True)


def test_too_few_pairs_say_nothing(tmp_path):
  few = rows(tmp_path, (0,))
  short = [
    row._replace(runs=[
      run._replace(summary=run.summary | {'per_client': {
        'mixture': run.per_client('mixture')[:5]}})
      for run in row.runs
    ])
    for row in (few['good'], few['bad <b>'])
  ]  # fmt: skip
  verdict = statistics.verdict(*short)
  assert (verdict.pairs, verdict.p, verdict.worse) == (5, None, False)


def test_mean_and_spread():
  assert statistics.measure([1.0, 2.0, 3.0]) == (2.0, 1.0)
  assert statistics.measure([2.0]) == (2.0, None)
  assert statistics.measure([1.0, None]) is None


@pytest.mark.parametrize('seed', range(20))
def test_the_front_is_what_nothing_beats_and_beats_all_else(seed):
  rng = np.random.default_rng(seed)
  # Few values, so that there are ties and twins.
  points = [tuple(map(float, p)) for p in rng.integers(0, 6, (12, 2))]
  found = statistics.front(points)

  def beaten(p):
    return any(
      q[0] <= p[0] and q[1] >= p[1] and q != p for q in points
    )  # fmt: skip

  assert set(found) == {i for i, p in enumerate(points) if not beaten(p)}
  costs = [points[i][0] for i in found]
  assert costs == sorted(costs)


def test_a_difference_has_the_interval_and_p_of_the_paired_test():
  rng = np.random.default_rng(3)
  a, b = rng.normal(0.3, 1, 7), rng.normal(0, 1, 7)
  found = statistics.difference(a, b)
  wanted = stats.ttest_rel(a, b)
  assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
  interval = wanted.confidence_interval(0.95)
  assert (found.low, found.high) == pytest.approx(
    (interval.low, interval.high), rel=1e-9
  )
  assert found.mean == pytest.approx(np.mean(a - b))
  for same in ([0.1], [0.1, 0.1]):
    assert statistics.difference(same, [0.0] * len(same)) == (
      0.1, 0.1, 0.1, None
    )  # fmt: skip


def test_of_several_tests_each_pays_for_those_that_are_left():
  found = statistics.holm([0.01, 0.04, None, 0.03, 0.005])
  assert found == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
  assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
  assert statistics.holm([None]) == [None]


def test_holm_gives_no_false_alarm_more_often_than_it_says():
  rng = np.random.default_rng(0)
  alarms = [min(statistics.holm(list(rng.random(8)))) for _ in range(4000)]
  assert abs(np.mean(np.array(alarms) < 0.05) - 0.05) < 0.012


def test_a_hypervolume_is_the_share_of_the_square_that_some_point_covers():
  rng = np.random.default_rng(1)
  points = [tuple(x) for x in rng.random((9, 2))]
  spots = (np.arange(400) + 0.5) / 400
  x, y = np.meshgrid(spots, spots)
  covered = np.any([(x <= a) & (y <= b) for a, b in points], axis=0)
  found = statistics.volume_under(points)
  assert found == pytest.approx(covered.mean(), abs=5e-3)
  front = statistics.undominated(points)
  assert 1 < len(front) < 9
  kept = [points[i] for i in front]
  assert statistics.volume_under(kept) == pytest.approx(found)
  for i in range(len(points)):
    assert (i in front) == (
      statistics.volume_under(points[:i] + points[i + 1 :]) < found - 1e-12
    )
  points = [(1, 2), (1, 2), (1, 1), (0, 2)]
  assert statistics.undominated(points) == [0, 1]
