"""Clients that differ by what they see, or by what they mean."""

import numpy as np
import pytest

from fedms_jax.core.types import Outputs
from fedms_jax.data import federation, lazy, shifts
from tests.data.federation_test import source
from tests.data.lazy_test import Spy


def built(data=None, **kwargs):
  made = {'num_clients': 9, 'unseen_clients': 3} | kwargs
  return federation.build(data or source(), **made)


def parts(data):
  return data.train, data.validation, data.test


def of_client(data, client):
  """All rows of a client, unseen ones counted behind those that train."""
  first = data.train.num_clients
  if client >= first:
    return data.unseen.of(client - first)
  return np.concatenate([part.of(client) for part in parts(data)])


def shown(before, after, rows, kind):
  """Which variants of a kind all of these rows may have got."""
  old, new = (x.table.columns['inputs'][rows] for x in (before, after))
  changes = shifts.VARIANTS[kind]
  return [v for v, f in enumerate(changes) if np.array_equal(f(old), new)]


@pytest.mark.parametrize('kind', shifts.VARIANTS)
@pytest.mark.parametrize('groups', [0, 2])
def test_a_client_sees_all_of_its_rows_alike_and_the_server_none(kind, groups):
  before = built(source(shape=(4, 4, 3)))
  after = shifts.shifted(before, kind, groups, 0)
  seen = [shown(before, after, of_client(before, k), kind) for k in range(12)]
  assert all(len(found) == 1 for found in seen)
  counts = np.bincount([found[0] for found in seen])
  if groups:
    assert counts.tolist() == [6, 6]
  else:
    assert (counts > 0).sum() > 1
  assert shown(before, after, before.public, kind) == [0]
  # Pooled rows of nobody are of all kinds that clients are.
  owned = shifts.owners(before)[before.pooled] >= 0
  assert not owned.any()
  each = [shown(before, after, [row], kind) for row in before.pooled]
  assert {v for found in each if len(found) == 1 for v in found} == {
    v for found in seen for v in found
  }
  other = shifts.shifted(before, kind, groups, 1).table.columns['inputs']
  assert (other != after.table.columns['inputs']).any()


def test_what_is_tested_of_a_client_looks_as_it_does_there():
  data = source(tested=0)
  before = built(data)
  assert np.isin(before.test.rows, before.pooled).all()
  after = shifts.shifted(before, 'invert', 2, 0)
  for client in range(12):
    rows = of_client(before, client)
    pooled = np.intersect1d(rows, before.pooled)
    assert len(pooled)
    both = [shown(before, after, x, 'invert') for x in (rows, pooled)]
    assert both[0] == both[1]


def test_lazy_images_are_changed_when_they_are_read():
  data = source()
  spy = Spy(inputs=data.table.columns['inputs'])
  order = np.random.default_rng(1).permutation(1000)
  late = built(data)
  moved = federation.by_client(late)
  columns = late.table.columns | {'inputs': lazy.Column(spy, 'inputs')}
  late = late._replace(table=late.table._replace(columns=columns))
  for before, whole in (
    (late, built(data)), (federation.by_client(late), moved)
  ):  # fmt: skip
    after = shifts.shifted(before, 'rotate', 0, 3)
    assert not spy.seen
    found = lazy.take(after.table.columns, order)['inputs']
    expected = shifts.shifted(whole, 'rotate', 0, 3).table.columns['inputs']
    np.testing.assert_array_equal(found, expected[order])
    spy.seen.clear()


def test_blur_is_a_mean_of_neighbors():
  image = np.zeros((1, 5, 5, 1), np.uint8)
  image[0, 2, 2] = 90
  found = shifts.VARIANTS['blur'][1](image)[0, ..., 0]
  assert found[1:4, 1:4].tolist() == [[10] * 3] * 3
  assert found.sum() == 90
  flat = np.full((1, 4, 4, 3), 7, np.uint8)
  assert (shifts.VARIANTS['blur'][2](flat) == 7).all()


def test_a_group_means_a_permutation_of_what_the_data_does():
  before = built()
  after = shifts.permuted(before, 3, 0)
  old, new = (x.table.columns['labels'] for x in (before, after))
  assert new.dtype == old.dtype
  found = {}
  for client in range(12):
    rows = of_client(before, client)
    pairs = set(zip(old[rows].tolist(), new[rows].tolist(), strict=True))
    assert len(pairs) == len(dict(pairs)) == len({b for _, b in pairs})
    found.setdefault(frozenset(a == b for a, b in pairs) == {True}, []).append(
      (client, dict(pairs))
    )
  assert len(found[True]) == 4  # of the first of three groups
  same = [(old[rows] == new[rows]).all() for rows in before.pooled[:, None]]
  assert 0.2 < np.mean(same) < 0.8
  np.testing.assert_array_equal(old[before.public], new[before.public])


def test_no_label_becomes_a_class_that_nobody_trains_on():
  before = built(novel_classes='fox')
  after = shifts.permuted(before, 4, 0)
  old, new = (x.table.columns['labels'] for x in (before, after))
  np.testing.assert_array_equal(old == 5, new == 5)
  assert (old != new).any()


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda d: shifts.shifted(d, 'color', 0, 0), 'three color channels.*1'),
    (lambda d: shifts.shifted(d, 'invert', 3, 0), '`shift_groups`=3.*most 2'),
    (lambda d: shifts.permuted(d, 13, 0), '`concept_groups`=13.*most 12'),
  ],
)
def test_what_would_change_nothing_of_the_kind_is_refused(change, said):
  with pytest.raises(ValueError, match=said):
    change(built())


@pytest.mark.parametrize('kind', ['rotate', 'mixed'])
def test_only_square_images_are_turned(kind):
  with pytest.raises(ValueError, match='square images; got 4 x 6'):
    shifts.shifted(built(source(shape=(4, 6, 1))), kind, 0, 0)


def test_texts_and_what_has_no_classes_are_refused():
  data = built()
  tokens = np.zeros((1000, 5), np.int32)
  with pytest.raises(ValueError, match='for images'):
    texts = data.table.columns | {'inputs': tokens}
    table = data.table._replace(columns=texts)
    shifts.shifted(data._replace(table=table), 'invert', 0, 0)
  with pytest.raises(ValueError, match='learned here is tokens'):
    table = data.table._replace(columns=data.table.columns | {'targets': 0})
    shifts.permuted(data._replace(table=table), 2, 0)
  with pytest.raises(ValueError, match='learned here is values'):
    table = data.table._replace(outputs=Outputs('values', ('a',)))
    shifts.permuted(data._replace(table=table), 2, 0)
