"""Samplers of cohorts: their laws, caps and turns."""

import numpy as np
import pytest

from fedms_jax.core.types import Partition
from fedms_jax.data import private_rows, sampling

N, K = 40, 8


def draws(how, rounds=400, seed=0, stage=0):
  return [sampling.sample(how, seed, stage, t) for t in range(rounds)]


@pytest.mark.parametrize('kind', sampling.KINDS)
def test_a_cohort_is_a_function_of_seed_stage_and_round(kind):
  groups = 1 if kind in ('fixed', 'poisson') else 4
  how = sampling.sampling(kind, N, K, groups=groups)
  found = draws(how, 30)
  for one, again in zip(found, draws(how, 30), strict=True):
    np.testing.assert_array_equal(one, again)
    assert one.dtype == np.int64 and (np.diff(one) > 0).all()
  for other in (draws(how, 30, seed=1), draws(how, 30, stage=1)):
    assert any(
      not np.array_equal(a, b) for a, b in zip(found, other, strict=True)
    )


def test_a_poisson_cohort_has_binomial_size_and_independent_clients():
  how = sampling.sampling('poisson', N, K)
  found = draws(how, 4000)
  sizes = np.array([len(x) for x in found])
  assert abs(sizes.mean() - K) < 0.15
  assert abs(sizes.var() - K * (1 - K / N)) < 0.5
  there = np.zeros((len(found), N))
  for row, ids in zip(there, found, strict=True):
    row[ids] = 1
  # Of independent draws the covariances are 0, of fixed sizes -q(1-q)/(N-1).
  pairs = np.cov(there.T)[np.triu_indices(N, 1)]
  assert abs(pairs.mean()) < 1e-3
  assert abs(there.mean(0) - K / N).max() < 0.03


def test_a_small_chance_gives_empty_cohorts():
  how = sampling.sampling('poisson', N, 1)
  sizes = [len(x) for x in draws(how)]
  assert 0 in sizes and max(sizes) > 1


def test_a_cap_keeps_a_random_part_of_what_was_drawn():
  how = sampling.sampling('poisson', N, K, cap=K)
  found = draws(how, 2000)
  assert max(len(x) for x in found) == K
  times = np.bincount(np.concatenate(found), minlength=N)
  assert times.std() / times.mean() < 0.1  # nobody is preferred
  assert sampling.sampling('poisson', 10_000, 100).cap == 160
  assert sampling.sampling('poisson', N, N).cap == N


@pytest.mark.parametrize('kind', ['cyclic', 'min_separation'])
def test_groups_take_turns_and_nobody_comes_back_before(kind):
  groups = 4
  how = sampling.sampling(kind, N + 2, K, groups=groups)
  last, met = {}, set()
  for t, ids in enumerate(draws(how, 60)):
    if kind == 'min_separation':
      assert len(ids) == K
    for i in ids.tolist():
      assert t - last.get(i, -groups) >= groups
      assert (t - last.get(i, t)) % groups == 0  # always in its own turn
      last[i] = t
      met.add(i)
  assert met == set(range(N + 2))


def test_a_fixed_cohort_is_what_it_was():
  from fedms_jax.data import cohorts

  how = sampling.sampling('fixed', N, K)
  np.testing.assert_array_equal(
    sampling.sample(how, 3, 1, 2), cohorts.sample_cohort(3, 1, 2, N, K)
  )
  assert sampling.sampling('fixed', 3, 9).size == 3


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    (('weekly', N, K), '`sampling`=.*fixed, poisson'),
    (('poisson', N, K, 0, 2), '`groups`=2'),
    (('fixed', N, K, 9), '`cap`=9 is for cohorts of random size'),
    (('poisson', N, K, 7), '`cap`=7 is under the mean'),
    (('cyclic', N, K, 0, 6), '`size`=8 is not allowed; allowed: 1 to 6'),
  ],
)
def test_what_cannot_be_drawn_is_refused(words, said):
  with pytest.raises(ValueError, match=said):
    sampling.sampling(*words)


SIZES = [7, 40]
PARTITION = Partition(
  np.concatenate([[0], np.cumsum(SIZES)]), 100 + np.arange(47, dtype=np.int32)
)


def rows_of(round=0, **more):
  how = {'batch_size': 8, 'epochs': 2, 'steps': 0, 'cap': 20} | more
  return private_rows.batches(
    PARTITION, np.array([1, 0]), seed=0, stage=0, round=round, **how
  )


def test_rows_come_into_a_step_by_chance_and_each_by_itself():
  sizes, there = [], np.zeros((0, 40))
  for t in range(150):
    rows, counts = rows_of(t)
    assert rows.shape[2] == 21 and counts.tolist() == [10, 2]
    for step in rows[0, : counts[0]]:
      real = step[:-1][step[:-1] >= 0]
      assert len(np.unique(real)) == len(real) <= 20
      sizes.append(len(real))
      there = np.vstack([there, np.isin(np.arange(107, 147), real)])
    assert not (rows[0, counts[0] :] >= 0).any()
  # Never of no rows at all: the last one belongs to nobody.
  assert (rows[0, : counts[0], -1] == 107).all()
  assert abs(np.mean(sizes) - 8) < 0.25
  assert abs(np.var(sizes) - 8 * 0.8) < 0.8
  assert abs(there.mean(0) - 0.2).max() < 0.05


def test_few_rows_are_all_there_and_many_are_cut():
  rows, _ = rows_of()
  assert sorted(rows[1, 0, :7].tolist()) == list(range(100, 107))
  cut, counts = rows_of(steps=30, cap=8)
  held = (cut[0, : counts[0], :-1] >= 0).sum(1)
  assert counts.tolist() == [30, 30] and held.max() == 8
  with pytest.raises(ValueError, match='`row_cap`=3 is under the mean'):
    private_rows.cap(8, 3)
  assert private_rows.cap(16) == 40
