"""Rows that a client gets beside those of its local steps."""

import numpy as np
import pytest

from fedms_jax.data import fresh
from tests import world


def drawn(ids, round=0, **changed):
  how = {'kind': 'holdout', 'share': 0.4, 'most': 8, 'public': 0, 'seed': 3}
  data = world.federation()
  return fresh.rows(
    data, np.array(ids), round, **(how | {'stage': 1} | changed)
  )


def mine(row):
  return row[row >= 0].tolist()


@pytest.mark.parametrize('kind', ['holdout', 'crossfit'])
def test_a_share_of_the_training_rows_is_held_out_always_the_same(kind):
  data = world.federation()
  found = drawn([4, 1], kind=kind)
  for row, client in zip(found, [4, 1], strict=True):
    assert mine(row) == data.train.of(client)[:2].tolist()  # 40 % of 6
  np.testing.assert_array_equal(found, drawn([4, 1], 7, kind=kind))
  np.testing.assert_array_equal(found[:1], drawn([4], kind=kind))


def test_at_least_one_row_is_held_out_and_never_the_last_one():
  parts = world.partition(np.arange(1), np.arange(2), np.arange(20))
  counts = [
    [len(mine(row)) for row in fresh.held_out(parts, np.arange(3), share, 6)]
    for share in (0.01, 0.9)
  ]
  assert counts == [[0, 1, 1], [0, 1, 6]]


def test_validation_rows_are_not_training_rows():
  data = world.federation()
  found = drawn([0, 5], kind='validation')
  assert mine(found[1]) == data.validation.of(5).tolist()
  assert drawn([0], kind='validation', most=1).shape == (1, 16)


def test_public_rows_are_drawn_for_each_client_and_round():
  data, own = world.federation(), drawn([1, 2])
  found = drawn([1, 2], public=12)
  np.testing.assert_array_equal(found[:, : own.shape[1]], own)
  foreign = found[:, own.shape[1] :]
  assert foreign.shape == (2, 12)
  assert np.isin(foreign, data.public).all()
  assert (foreign[0] != foreign[1]).any()
  other = drawn([1, 2], 1, public=12)[:, own.shape[1] :]
  assert (foreign != other).any()
  alone = drawn([2], public=12)[0, own.shape[1] :]
  np.testing.assert_array_equal(alone, foreign[1])
