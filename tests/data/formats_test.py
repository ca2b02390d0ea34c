"""Formats of data sets that `datasets` does not read."""

import gzip
import json
import struct
import zipfile

import datasets.config
import numpy as np
import pytest

from fedms_jax.data import formats, lazy, sources

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 4, 4), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)


@pytest.fixture
def data(tmp_path, monkeypatch):
  cache = tmp_path / 'cache'
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', cache)
  (tmp_path / 'data').mkdir()
  return tmp_path / 'data'


def load(path, **kwargs):
  source = sources.load(str(path), **kwargs)
  columns = lazy.whole(source.table.columns)
  return source, columns['inputs'], columns['labels']


def refused(path, **kwargs):
  with pytest.raises(ValueError) as error:
    load(path, **kwargs)
  assert '\n' not in str(error.value)
  return str(error.value)


# LEAF


def leaf(path, users, changes=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  content = {
    'users': list(users),
    'num_samples': [len(y) for _, y in users.values()],
    'user_data': {u: {'x': x, 'y': y} for u, (x, y) in users.items()},
  } | (changes or {})
  path.write_text(json.dumps(content))


def flat(rows):
  return (PIXELS[rows].reshape(len(rows), -1) / 255).tolist()


def test_images_of_leaf_are_those_that_were_divided_by_255(data):
  users = {'f1': (flat([0, 1]), [0, 1]), 'f0': (flat([2, 3, 4]), [2, 0, 1])}
  leaf(data / 'train' / 'all_data_0.json', users)
  leaf(data / 'test' / 'all_data_0.json', {'f1': (flat([5]), [2])})
  source, inputs, labels = load(data, group_column='user')
  np.testing.assert_array_equal(inputs[..., 0], PIXELS)
  assert labels.tolist() == LABELS.tolist()
  assert source.groups is not None
  assert source.groups.tolist() == [0, 0, 1, 1, 1, -1]
  assert source.test_rows.tolist() == [5]


def test_texts_of_leaf(data):
  leaf(data / 'a.json', {'u': (['to be', 'or'], [' ', 'n'])})

  class Encode:
    max_tokens = 9

    def tokens(self, texts, others=None):
      return {'inputs': np.array([[len(t)] for t in texts], np.int32)}

    def finish(self, columns, rows, count):
      return columns

  for path in (data, data / 'a.json'):
    source, inputs, _ = load(path, encode_text=Encode())
    assert inputs.tolist() == [[5], [2]]
    assert source.table.label_names == (' ', 'n')


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'user_data': {}}, "'u' is not there"),
    ({'users': 3}, 'LEAF'),
    ({'user_data': {'u': {'x': [[0.1]], 'y': []}}}, 'as many x as y'),
    ({'user_data': {'u': {'x': [[0, 1]], 'y': [0]}}}, 'no square image'),
    ({'user_data': {'u': {'x': [[0], [0, 1]], 'y': [0, 1]}}}, 'lengths'),
    ({'user_data': {'u': {'x': [[-3.5]], 'y': [0]}}}, 'from -3.5'),
    ({'user_data': {'u': {'x': [['id', 'text']], 'y': [0]}}}, 'Sent140'),
    ({'user_data': {'u': {'x': [[0.0]], 'y': [[0, 1]]}}}, 'no labels'),
  ],
)
def test_broken_files_of_leaf_are_refused(data, changes, said):
  leaf(data / 'a.json', {'u': ([[0.0]], [0])}, changes)
  assert said in refused(data)


def test_a_torn_file_of_leaf_is_refused(data):
  leaf(data / 'a.json', {'u': ([[0.0]], [0])})
  text = (data / 'a.json').read_text()
  (data / 'a.json').write_text(text[:-4])
  assert 'a.json is no whole file of LEAF' in refused(data)


# idx


def idx(path, values, kind=8):
  head = bytes([0, 0, kind, values.ndim])
  head += struct.pack(f'>{values.ndim}I', *values.shape)
  opened = gzip.open if path.suffix == '.gz' else open
  with opened(path, 'wb') as file:
    file.write(head + values.tobytes())


def mnist(folder, end=''):
  idx(folder / f'train-images-idx3-ubyte{end}', PIXELS[:4])
  idx(folder / f'train-labels-idx1-ubyte{end}', LABELS[:4])
  idx(folder / f't10k-images-idx3-ubyte{end}', PIXELS[4:])
  idx(folder / f't10k-labels-idx1-ubyte{end}', LABELS[4:])


@pytest.mark.parametrize('end', ['', '.gz'])
def test_files_of_mnist(data, end):
  mnist(data, end)
  source, inputs, labels = load(data)
  np.testing.assert_array_equal(inputs[..., 0], PIXELS)
  assert labels.tolist() == LABELS.tolist()
  assert source.test_rows.tolist() == [4, 5]
  source, inputs, _ = load(data / f't10k-images-idx3-ubyte{end}')
  np.testing.assert_array_equal(inputs[..., 0], PIXELS[4:])
  assert not len(source.test_rows)


@pytest.mark.parametrize('end', ['', '.gz'])
@pytest.mark.parametrize('left', [2, 10, -1])
def test_torn_files_of_mnist_are_refused(data, end, left):
  mnist(data, end)
  path = data / f'train-images-idx3-ubyte{end}'
  path.write_bytes(path.read_bytes()[:left])
  assert f'{path} is no whole idx file' in refused(data)


def test_other_lies_of_idx_files_are_refused(data):
  mnist(data)
  images, labels = (
    data / f'train-{name}-ubyte' for name in ('images-idx3', 'labels-idx1')
  )
  idx(images, PIXELS[:4], kind=13)
  assert 'unsigned bytes' in refused(data)
  images.write_bytes(bytes([0, 0, 8, 3]) + b'\xff' * 12)
  assert 'says that its shape is' in refused(data)
  idx(images, PIXELS[:3])
  assert '3 image, 4 label' in refused(data)
  images.unlink()
  assert 'no idx file of the images of its train split' in refused(data)


# npz


@pytest.mark.parametrize(
  'names',
  [
    ('x_train', 'y_train', 'x_test', 'y_test'),
    ('train_images', 'train_labels', 'test_images', 'test_labels'),
    ('images', 'labels', 'test_images', 'test_labels'),
  ],
)
def test_arrays_of_numpy(data, names):
  color = PIXELS[..., None].repeat(3, -1)
  arrays = color[:4], LABELS[:4, None], color[4:], LABELS[4:, None]
  np.savez(data / 'a.npz', **dict(zip(names, arrays, strict=True)))
  for path in (data / 'a.npz', data):
    source, inputs, labels = load(path)
    np.testing.assert_array_equal(inputs, color)
    assert labels.tolist() == LABELS.tolist()
    assert source.test_rows.tolist() == [4, 5]


@pytest.mark.parametrize(
  ('images', 'labels', 'said'),
  [
    (PIXELS, LABELS[:2], '6 image, 2 label'),
    (PIXELS / 100, LABELS, 'float64 values from 0'),
    (np.where(PIXELS, np.nan, PIXELS), LABELS, 'nan'),
    (PIXELS[0], LABELS[:4], 'shape (4, 4)'),
    (PIXELS.astype(object), LABELS, 'allow_pickle'),
    (PIXELS.astype(complex), LABELS, 'complex128 values'),
    (PIXELS, np.eye(6), 'which are no labels'),
    (PIXELS[..., None].repeat(2, -1), LABELS, 'shape (4, 4, 2)'),
  ],
)
def test_arrays_that_are_no_images_and_labels_are_refused(
  data, images, labels, said
):
  np.savez(data / 'a.npz', images=images, labels=labels)
  assert said in refused(data / 'a.npz')


def test_files_that_are_no_npz_are_refused(data, monkeypatch):
  path = data / 'a.npz'
  np.savez(path, images=PIXELS, other=LABELS)
  assert 'its arrays are images, other' in refused(path)
  np.savez(path, images=PIXELS, labels=LABELS)
  content = path.read_bytes()
  for wrong in (b'', b'hello', content[:200], content[:-30]):
    path.write_bytes(wrong)
    assert 'a.npz' in refused(path)
  path.write_bytes(content)
  monkeypatch.setattr(formats, 'MOST', 100)
  assert 'unpacks to' in refused(path)


def test_a_bomb_is_not_unpacked(data):
  path = data / 'a.npz'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    with archive.open('images.npy', 'w') as file:
      np.lib.format.write_array_header_1_0(
        file,
        {'descr': '|u1', 'fortran_order': False, 'shape': (2**50, 28, 28)},
      )
      file.write(bytes(1000))
    with archive.open('labels.npy', 'w') as file:
      np.lib.format.write_array(file, LABELS)
  assert 'a.npz cannot be read' in refused(path)


def test_fractions_of_255_and_whole_numbers_are_the_same_pixels():
  for values in (PIXELS / 255, (PIXELS / 255).astype(np.float32), PIXELS * 1.0):
    np.testing.assert_array_equal(formats.pixels(values, 'x'), PIXELS)


# CSV


def test_a_class_of_a_csv_file_may_be_called_na(data):
  words = ['NA', 'None', 'null', 'US']
  lines = [f'text {i},{words[i % 4]}' for i in range(8)]
  (data / 'train.csv').write_text('\n'.join(['text,label', *lines]))

  class Encode:
    max_tokens = 9

    def tokens(self, texts, others=None):
      return {'inputs': np.zeros((len(texts), 1), np.int32)}

    def finish(self, columns, rows, count):
      return columns

  for path in (data, data / 'train.csv'):
    source, _, labels = load(path, encode_text=Encode())
    assert source.table.label_names == ('NA', 'None', 'US', 'null')
    assert labels.tolist() == [0, 1, 3, 2] * 2
  with (data / 'train.csv').open('a') as file:
    file.write('\ntext 8,\n')
  text = refused(data, encode_text=Encode())
  assert "row 8 of the train split has no 'label'" in text
