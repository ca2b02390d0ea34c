import tracemalloc

import numpy as np
import pytest

from fedms_jax.core.types import Partition
from fedms_jax.data import cohorts

SIZES = np.asarray([7, 1, 12, 5, 30, 4])
PARTITION = Partition(
  np.concatenate([[0], np.cumsum(SIZES)]),
  np.random.default_rng(0).permutation(SIZES.sum()).astype(np.int32),
)


def batches(ids, **kwargs):
  kwargs = {
    'batch_size': 4, 'epochs': 2, 'steps': 0, 'seed': 0, 'stage': 1, 'round': 3
  } | kwargs  # fmt: skip
  return cohorts.batches(PARTITION, np.asarray(ids), **kwargs)


def test_a_cohort_is_of_different_clients_and_a_function_of_its_arguments():
  draw = cohorts.sample_cohort(0, 1, 2, 100, 30)
  assert draw.dtype == np.int64
  assert len(np.unique(draw)) == 30
  assert 0 <= draw.min() and draw.max() < 100
  np.testing.assert_array_equal(draw, cohorts.sample_cohort(0, 1, 2, 100, 30))
  for other in ((1, 1, 2), (0, 0, 2), (0, 1, 3)):
    assert not np.array_equal(draw, cohorts.sample_cohort(*other, 100, 30))


def test_all_clients_are_sampled_equally_often():
  draws = [cohorts.sample_cohort(0, 0, r, 20, 5) for r in range(800)]
  times = np.bincount(np.concatenate(draws), minlength=20)
  assert times.min() > 150 and times.max() < 250


def test_sampling_from_a_million_clients_holds_nothing_of_their_number():
  cohorts.sample_cohort(0, 0, 0, 10**6, 100)
  tracemalloc.start()
  draw = cohorts.sample_cohort(0, 0, 1, 10**6, 100)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert len(np.unique(draw)) == 100
  assert peak < 100_000


@pytest.mark.parametrize('size', [0, 7])
def test_a_cohort_beyond_the_population_is_refused(size):
  with pytest.raises(ValueError, match='`size`=.*1 to 6'):
    cohorts.sample_cohort(0, 0, 0, 6, size)


def test_who_is_lost_depends_on_client_and_round_and_nobody_else():
  ids = np.arange(400)
  lost = cohorts.lost(0, 1, 2, ids, 0.25)
  assert lost.dtype == bool and 70 < lost.sum() < 130
  some = cohorts.lost(0, 1, 2, ids[300:200:-3], 0.25)
  np.testing.assert_array_equal(some, lost[300:200:-3])
  for other in ((1, 1, 2), (0, 0, 2), (0, 1, 3)):
    assert 0.2 < (cohorts.lost(*other, ids, 0.25) != lost).mean() < 0.55
  assert cohorts.lost(0, 1, 2, ids, 1.0).all()
  assert not cohorts.lost(0, 1, 2, ids, 0.0).any()
  assert cohorts.lost(0, 1, 2, ids[:0], 0.5).shape == (0,)


def test_each_epoch_holds_each_row_once():
  rows, steps = batches(range(6), epochs=3)
  for k, count in enumerate(steps):
    assert count == 3 * -(-SIZES[k] // 4)
    for epoch in np.split(rows[k, :count], 3):
      held = epoch[epoch != cohorts.PADDING]
      np.testing.assert_array_equal(
        np.sort(held), np.sort(PARTITION.of(k))
      )  # fmt: skip


def test_epochs_and_rounds_are_shuffled_anew():
  rows, _ = batches([4], epochs=2, batch_size=30)
  again, _ = batches([4], epochs=1, batch_size=30, round=4)
  orders = [rows[0, 0], rows[0, 1], again[0, 0], np.sort(rows[0, 0])]
  assert len({tuple(order) for order in orders}) == 4


def test_every_order_is_as_likely():
  """The 24 orders of 4 rows over 2400 rounds."""
  orders = [
    tuple(batches([5], epochs=1, round=r)[0][0, 0]) for r in range(2400)
  ]
  _, times = np.unique(orders, axis=0, return_counts=True)
  assert len(times) == 24
  chi_squared = ((times - 100) ** 2 / 100).sum()
  assert chi_squared < 50  # 23 degrees of freedom: p < 0.001


def test_a_client_does_not_depend_on_the_cohort():
  together, steps = batches([4, 0, 2])
  for place, k in enumerate([4, 0, 2]):
    alone, (count,) = batches([k])
    assert count == steps[place]
    np.testing.assert_array_equal(
      alone[0, :count], together[place, :count]
    )  # fmt: skip


def test_padding_lies_after_the_rows_of_a_step_and_after_the_steps():
  rows, steps = batches(range(6))
  real = rows != cohorts.PADDING
  assert (np.diff(real.astype(int), axis=2) <= 0).all()
  np.testing.assert_array_equal(real.any(2).sum(1), steps)
  assert (np.diff(real.any(2).astype(int), axis=1) <= 0).all()
  assert real.sum() == 2 * SIZES.sum()


def test_steps_cycle_through_the_epochs_that_they_need():
  by_steps, steps = batches([0, 1, 4], steps=5)
  by_epochs, _ = batches([0, 1, 4], epochs=5)
  assert steps.tolist() == [5, 5, 5]
  np.testing.assert_array_equal(by_steps, by_epochs[:, :5])


def test_shapes_come_in_few_buckets_with_little_padding():
  extents = [cohorts.bucket(n) for n in range(1, 4097)]
  assert all(extent >= n for n, extent in enumerate(extents, 1))
  assert max(e / n for n, e in enumerate(extents, 1)) < 1.125
  assert extents[:16] == list(range(1, 17))
  assert len(set(extents)) == 16 + 8 * 8
  assert extents == sorted(extents)
  assert all(cohorts.bucket(extent) == extent for extent in set(extents))


def executed(found, steps, extent):
  return sum(lanes * extent(steps[places].max()) for places, lanes in found)


def test_rows_to_look_at_come_in_fewer_extents():
  """Runs of other seeds then share their programs."""
  extents = [cohorts.looked_at(n) for n in range(1, 4097)]
  assert all(n <= extent for n, extent in enumerate(extents, 1))
  assert extents == sorted(extents)
  few = [16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128]
  assert sorted(set(extents[:128])) == few
  assert all(x - n <= n / 4 for n, x in enumerate(extents, 1) if n > 32)
  assert extents[128:] == [cohorts.bucket(n) for n in range(129, 4097)]
  assert all(cohorts.looked_at(extent) == extent for extent in set(extents))


@pytest.mark.parametrize('extent', [cohorts.bucket, int])
@pytest.mark.parametrize('batch', [1, 8, 64])
def test_little_is_padded_although_sizes_differ_widely(extent, batch):
  """Over 90 % of the executed steps are real at lognormal sigma 1, in each of
  many cohorts of 64 in chunks of 8."""
  for seed in range(40):
    sizes = 200 * np.random.default_rng(seed).lognormal(0, 1, 64)
    steps = np.maximum(1, sizes // batch).astype(int)
    found = cohorts.chunks(steps, 8, extent)
    assert steps.sum() / executed(found, steps, extent) > 0.9
    assert len(found) <= 32


@pytest.mark.parametrize('width', [1, 5, 8, 64])
def test_each_client_is_in_one_chunk_with_a_lane_of_its_own(width):
  steps = np.random.default_rng(0).integers(1, 300, 37)
  found = cohorts.chunks(steps, width)
  places = np.concatenate([places for places, _ in found])
  assert sorted(places) == list(range(37))
  assert all(len(places) <= lanes <= width for places, lanes in found)
  assert {lanes for _, lanes in found} <= {1, 2, 3, 4, 5, 8, 16, 32, 64}
  assert (np.diff(steps[places]) <= 0).all()


def test_clients_of_like_length_fill_whole_chunks():
  found = cohorts.chunks(np.full(64, 7), 8)
  assert [lanes for _, lanes in found] == [8] * 8
  # One long client does not make seven others wait.
  found = cohorts.chunks(np.array([7] * 8 + [90]), 8)
  assert [(list(places), lanes) for places, lanes in found] == [
    ([8], 1), ([0, 1, 2, 3, 4, 5, 6, 7], 8)
  ]  # fmt: skip
  assert cohorts.chunks(np.zeros(0, int), 8) == []
  wide = cohorts.chunks(np.arange(1, 20), 8, least=4)
  assert {lanes for _, lanes in wide} <= {8, 4}


def test_rows_have_the_shape_of_a_bucket():
  rows, steps = batches([4], epochs=5, batch_size=2)
  assert steps.tolist() == [75]
  assert rows.shape == (1, cohorts.bucket(75), 2) == (1, 80, 2)
  assert rows.dtype == np.int32


def test_a_client_without_rows_is_refused_by_name():
  empty = Partition(np.asarray([0, 2, 2]), np.asarray([0, 1], np.int32))
  with pytest.raises(ValueError, match='client 1 has no training rows'):
    cohorts.batches(
      empty, np.asarray([0, 1]),
      batch_size=4, epochs=1, steps=0, seed=0, stage=0, round=0,
    )  # fmt: skip


def test_evaluation_rows_are_the_first_of_each_client():
  rows = cohorts.evaluation_rows(PARTITION, np.asarray([2, 1, 4]), 20)
  assert rows.shape == (3, 24)
  for held, k in zip(rows, (2, 1, 4), strict=True):
    held = held[held != cohorts.PADDING]
    np.testing.assert_array_equal(held, PARTITION.of(k)[:20])


def test_evaluation_without_limit_takes_all_rows():
  rows = cohorts.evaluation_rows(PARTITION, np.arange(6), 0)
  assert rows.shape[1] == cohorts.looked_at(30)
  assert (rows != cohorts.PADDING).sum() == SIZES.sum()
