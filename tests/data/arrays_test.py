"""Arrays of a Python program as data."""

import numpy as np
import pytest

from fedms_jax.data import arrays, federation

X = np.arange(60, dtype=np.float64).reshape(30, 2)
LABELS = np.array(['b', 'a', 'c'] * 10)


def test_labels_of_any_type_become_classes():
  source = arrays.source(arrays.from_arrays(X, LABELS), 'classes')
  assert source.table.label_names == ('a', 'b', 'c')
  assert source.table.columns['labels'][:3].tolist() == [1, 0, 2]
  assert source.table.columns['inputs'].dtype == np.float32
  assert len(source.train_rows) == 30 and not len(source.test_rows)


def test_floats_are_numbers_and_zeros_and_ones_are_tags():
  numbers = arrays.from_arrays(X, X[:, 0])
  assert (numbers.kind, numbers.head) == ('values', 'regression')
  source = arrays.source(numbers, 'values')
  outputs = source.table.outputs
  back = source.table.columns['values'] * outputs.spread + outputs.center
  np.testing.assert_allclose(back[:, 0], X[:, 0], atol=1e-5)
  said = np.eye(3, dtype=int)[np.arange(30) % 3]
  tags = arrays.from_arrays(X, said)
  assert (tags.kind, tags.head) == ('tags', 'multi_label')
  found = arrays.source(tags, 'tags')
  np.testing.assert_array_equal(found.table.columns['tags'], said)
  with pytest.raises(ValueError, match='regression'):
    arrays.source(numbers, 'classes')


def test_levels_are_labels_in_an_order():
  source = arrays.source(arrays.from_arrays(X, np.arange(30) % 3), 'levels')
  assert source.table.outputs.kind == 'levels'


def test_clients_keep_their_rows_and_names():
  """A client's rows are its own, whatever the order in which it is dealt."""
  data = arrays.from_clients(
    {name: (np.full((5, 2), i), [0, 1, 0, 1, 0]) for i, name in
     enumerate(['zoe', 'ann', 7])}
  )  # fmt: skip
  source = arrays.source(data, 'classes')
  found = federation.build(
    source, num_clients=3, name='natural', min_rows=3, public_fraction=0.0
  )
  assert sorted(found.names) == ['7', 'ann', 'zoe']
  for k, name in enumerate(found.names):
    rows = np.concatenate([found.train.of(k), found.test.of(k)])
    inputs = found.table.columns['inputs'][rows]
    assert set(inputs.ravel()) == {['zoe', 'ann', '7'].index(name)}


def test_a_test_set_is_the_pooled_one():
  data = arrays.from_arrays(X, LABELS, test=(X[:4] + 100, LABELS[:4]))
  source = arrays.source(data, 'classes')
  found = federation.build(source, num_clients=3, name='iid', min_rows=3)
  assert (found.table.columns['inputs'][found.pooled] >= 100).all()
  assert len(found.pooled) == 4


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda: arrays.from_arrays(X, LABELS[:9]), '30 rows and y 9'),
    (lambda: arrays.from_arrays(X[:, 0], LABELS), r'\[M, ...\]'),
    (lambda: arrays.from_arrays(X * np.nan, LABELS), 'not finite'),
    (lambda: arrays.from_arrays(np.array([['a']]), ['b']), 'datasets.Dataset'),
    (lambda: arrays.from_arrays(X, LABELS, groups=[1, 2]), '2 entries for 30'),
    (lambda: arrays.from_arrays(X, LABELS, test=(X[:, :1], LABELS)), 'shapes'),
    (lambda: arrays.from_clients({}), 'no clients'),
  ],
)
def test_what_does_not_fit_is_refused(make, said):
  with pytest.raises(ValueError, match=said):
    make()
