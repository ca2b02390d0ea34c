import numpy as np
import pytest

from fedms_jax.core.types import Federation, Partition, Table
from fedms_jax.data import archive


def table(labels=(0, 1, 1, 0), names=('a', 'b')):
  return Table({'labels': np.asarray(labels, np.int32)}, names)


def divided():
  def one(row):
    return Partition(np.asarray([0, 1]), np.asarray([row], np.int32))

  nobody = np.zeros(0, np.int32)
  empty = Partition(np.zeros(1, np.int64), nobody)
  return Federation(table(), one(0), one(2), one(1), empty, nobody + 1, nobody)


def test_round_trip_keeps_values_and_types(tmp_path):
  path = str(tmp_path / 'p.npz')
  archive.save(path, divided())
  loaded = archive.load(path, table())
  for before, after in zip(divided()[1:], loaded[1:], strict=True):
    np.testing.assert_equal(after, before)
    if isinstance(before, tuple | str) and not before:
      continue
    if isinstance(before, Partition):
      before, after = before.rows, after.rows
    assert after.dtype == before.dtype


@pytest.mark.parametrize(
  'other',
  [
    table(labels=(0, 1, 1)),
    table(labels=(1, 0, 1, 0)),
    table(names=('a', 'c')),
  ],
)
def test_other_data_is_refused(tmp_path, other):
  path = str(tmp_path / 'p.npz')
  archive.save(path, divided())
  with pytest.raises(ValueError, match='divides other data'):
    archive.load(path, other)


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(ValueError, match='no such file'):
    archive.load(str(tmp_path / 'p.npz'), table())


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'text', 'array'])
def test_a_broken_file_is_refused(tmp_path, damage):
  path = tmp_path / 'p.npz'
  archive.save(str(path), divided())
  data = bytearray(path.read_bytes())
  if damage == 'cut':
    path.write_bytes(data[: len(data) // 2])
  elif damage == 'flipped':
    data[data.index(b'NUMPY') + 130] ^= 0xFF
    path.write_bytes(data)
  elif damage == 'text':
    path.write_text('offsets and rows')
  else:
    with path.open('wb') as file:
      np.save(file, np.arange(3))
  with pytest.raises(ValueError, match='no whole partition file'):
    archive.load(str(path), table())


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
  with pytest.raises(ValueError, match='`save`=.*cannot be written'):
    archive.save(str(tmp_path / 'nowhere' / 'p.npz'), divided())
  with pytest.raises(ValueError, match='cannot be written'):
    archive.save(str(tmp_path), divided())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'p.npz'
  archive.save(str(path), divided())
  before = path.read_bytes()

  def half(file, **arrays):
    file.write(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', half)
  with pytest.raises(ValueError, match='No space left'):
    archive.save(str(path), divided())
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ('name', 'values', 'said'),
  [
    ('train_offsets', [1, 1], 'offsets'),
    ('train_offsets', [0, 2], 'offsets'),
    ('train_offsets', [0, 3, 1], 'offsets'),
    ('train_offsets', [], 'offsets'),
    ('train_offsets', [[0, 1]], '2 axes'),
    ('pooled', [0.5], 'float64 values'),
    ('pooled', ['0'], '<U1 values'),
    ('public', [-1], 'number -1'),
    ('test_rows', [2**40], str(2**40)),
  ],
)
def test_a_file_of_other_numbers_is_refused(tmp_path, name, values, said):
  path = str(tmp_path / 'p.npz')
  archive.save(path, divided())
  with np.load(path) as file:
    arrays = dict(file)
  kind = None if values else np.int64
  np.savez(path, **arrays | {name: np.asarray(values, kind)})
  with pytest.raises(ValueError, match='is no whole partition') as error:
    archive.load(path, table())
  assert said in str(error.value)
