import numpy as np
import pytest

from fedms_jax.data import sources


def test_digits_are_the_known_images():
  source = sources.load('digits')
  images = source.table.columns['inputs']
  assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
  assert images.min() == 0 and images.max() == 255
  assert source.table.label_names == tuple('0123456789')
  assert source.table.columns['labels'].dtype == np.int32
  assert len(source.train_rows) == 1797 and not len(source.test_rows)
  assert source.public_shift == 'dim'


def test_synthetic_is_a_function_of_the_seed():
  one, same, other = (
    sources.load('synthetic', synthetic_rows=50, seed=seed).table.columns
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(one['inputs'], same['inputs'])
  np.testing.assert_array_equal(one['labels'], same['labels'])
  assert not np.array_equal(one['inputs'], other['inputs'])


def test_synthetic_can_be_learned_but_not_at_once():
  """The nearest class mean does better than chance, and is not perfect."""
  table = sources.load('synthetic', synthetic_rows=2000).table
  images = table.columns['inputs'].reshape(2000, -1).astype(float)
  labels = table.columns['labels']
  means = np.stack(
    [images[:1000][labels[:1000] == c].mean(0) for c in range(10)]
  )
  distance = ((images[1000:, None] - means) ** 2).sum(-1)
  accuracy = np.mean(distance.argmin(1) == labels[1000:])
  assert 0.5 < accuracy < 0.999


def test_synthetic_has_the_classes_asked_for():
  table = sources.load(
    'synthetic', synthetic_rows=30, synthetic_classes=3
  ).table
  assert np.bincount(table.columns['labels']).tolist() == [10, 10, 10]
  assert table.label_names == ('0', '1', '2')


@pytest.mark.parametrize('name', sources.EMBEDDED)
def test_embedded_images_are_resized_and_cut(name):
  source = sources.load(name, image_size=12, max_rows=40)
  assert source.table.columns['inputs'].shape == (40, 12, 12, 1)
  assert len(source.train_rows) == 40
  assert len(source.table.label_names) == 10


def test_max_rows_keeps_a_choice_of_the_seed():
  one, same, other = (
    sources.load('digits', max_rows=20, seed=seed).table.columns['inputs']
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, same)
  assert not np.array_equal(one, other)


@pytest.mark.parametrize(
  'flag',
  ['subset', 'revision', 'input_column', 'label_column', 'group_column'],
)
def test_flags_that_embedded_sources_would_ignore_are_refused(flag):
  with pytest.raises(ValueError, match=f"`{flag}`='x'.*'digits'"):
    sources.load('digits', **{flag: 'x'})
