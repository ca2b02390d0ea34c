"""Files on disk and the Hub, read through `datasets`."""

import types

import datasets
import numpy as np
import pytest
from PIL import Image

from fedms_jax.data import lazy, sources


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), np.uint8)


def write_parquet(folder):
  features = datasets.Features(
    {
      'img': datasets.Image(),
      'label': datasets.ClassLabel(names=['ant', 'bee', 'cow']),
    }
  )
  for name, chosen in (('train', slice(0, 4)), ('test', slice(4, 6))):
    rows = {
      'img': [Image.fromarray(pixels) for pixels in PIXELS[chosen]],
      'label': [0, 2, 0, 2, 1, 0][chosen],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(
      folder / f'{name}.parquet'
    )


class Encode:
  """Makes a column of each text's length."""

  max_tokens = 9

  def __init__(self):
    self.seen = []

  def tokens(self, texts, others=None):
    self.seen += texts
    lengths = np.asarray([len(text) for text in texts], np.int32)
    return {'inputs': lengths[:, None]}

  def finish(self, columns, rows, count):
    return columns


def load(*args, **kwargs):
  """The source with all its rows read."""
  source = sources.load(*args, **kwargs)
  columns = lazy.whole(source.table.columns)
  return source._replace(table=source.table._replace(columns=columns))


def check_parquet(source):
  columns = source.table.columns
  np.testing.assert_array_equal(columns['inputs'], PIXELS)
  assert columns['labels'].tolist() == [0, 2, 0, 2, 1, 0]
  assert source.table.label_names == ('ant', 'bee', 'cow')
  assert source.train_rows.tolist() == [0, 1, 2, 3]
  assert source.test_rows.tolist() == [4, 5]
  assert source.public_shift == 'none'


def test_a_folder_of_parquet_has_the_splits_of_its_files(tmp_path):
  data = tmp_path / 'data'
  data.mkdir()
  write_parquet(data)
  check_parquet(load(str(data)))


def test_a_folder_saved_by_datasets(tmp_path):
  data = tmp_path / 'data'
  data.mkdir()
  write_parquet(data)
  datasets.load_dataset(str(data)).save_to_disk(tmp_path / 'saved')
  check_parquet(load(str(tmp_path / 'saved')))
  source = load(str(tmp_path / 'saved' / 'train'))
  np.testing.assert_array_equal(source.table.columns['inputs'], PIXELS[:4])


def test_the_only_split_of_a_source_may_be_called_test(tmp_path):
  data = tmp_path / 'data'
  data.mkdir()
  write_parquet(data)
  (data / 'train.parquet').unlink()
  source = load(str(data), train_split='test')
  assert len(source.train_rows) == 2 and not len(source.test_rows)


def test_one_file_is_the_training_split(tmp_path):
  write_parquet(tmp_path)
  source = load(str(tmp_path / 'test.parquet'))
  np.testing.assert_array_equal(source.table.columns['inputs'], PIXELS[4:])
  assert len(source.train_rows) == 2 and not len(source.test_rows)


@pytest.mark.parametrize('ending', ['csv', 'jsonl'])
def test_labels_of_all_splits_share_one_map(tmp_path, ending):
  data = tmp_path / 'data'
  data.mkdir()
  texts = {
    'train': {'text': ['a', 'bb', 'ccc'], 'label': ['dog', 'cat', 'dog']},
    'test': {'text': ['dddd', 'e'], 'label': ['bird', 'dog']},
  }
  for name, rows in texts.items():
    dataset = datasets.Dataset.from_dict(rows)
    path = data / f'{name}.{ending}'
    dataset.to_csv(path) if ending == 'csv' else dataset.to_json(path)
  source = load(str(data), encode_text=Encode())
  assert source.table.label_names == ('bird', 'cat', 'dog')
  assert source.table.columns['labels'].tolist() == [2, 1, 2, 0, 2]
  assert source.table.columns['inputs'].ravel().tolist() == [1, 2, 3, 4, 1]
  assert source.test_rows.tolist() == [3, 4]


def test_a_folder_of_images_has_a_label_per_folder(tmp_path):
  data = tmp_path / 'data'
  for split, label, i in (
    ('train', 'ant', 0), ('train', 'bee', 1), ('test', 'bee', 2)
  ):  # fmt: skip
    folder = data / split / label
    folder.mkdir(parents=True)
    Image.fromarray(PIXELS[i]).save(folder / f'{i}.png')
  source = load(str(data))
  assert source.table.label_names == ('ant', 'bee')
  assert source.table.columns['labels'].tolist() == [0, 1, 1]
  np.testing.assert_array_equal(source.table.columns['inputs'], PIXELS[:3])


def write_csv(folder, count=30):
  rows = {
    'text': [f'line {i}' for i in range(count)],
    'label': [i % 3 for i in range(count)],
    'user': [f'user {i % 4}' for i in range(count)],
  }
  path = folder / 'lines.csv'
  datasets.Dataset.from_dict(rows).to_csv(path)
  return str(path)


def test_groups_are_numbered_by_their_first_row(tmp_path):
  source = load(write_csv(tmp_path), group_column='user', encode_text=Encode())
  np.testing.assert_array_equal(source.groups, np.arange(30) % 4)


def test_max_rows_cuts_before_anything_is_encoded(tmp_path):
  encode = Encode()
  source = load(write_csv(tmp_path), max_rows=12, encode_text=encode)
  assert len(encode.seen) == len(source.train_rows) == 12


def refused(*args, **kwargs):
  with pytest.raises(ValueError) as error:
    sources.load(*args, **kwargs)
  return str(error.value)


def test_a_missing_split_is_refused_with_those_that_are(tmp_path):
  path = write_csv(tmp_path)
  text = refused(path, train_split='trian')
  assert "Did you mean 'train'?" in text
  text = refused(path, test_split='validation')
  assert '`test_split`' in text and 'There are: train' in text
  assert 'two splits' in refused(path, test_split='train')


def test_a_source_that_is_nowhere_says_what_was_tried(monkeypatch):
  def unreachable(*args, **kwargs):
    raise ConnectionError('the Hub is out of reach\nand more')

  monkeypatch.setattr(datasets, 'load_dataset_builder', unreachable)
  text = refused('someone/something')
  for words in ('digits, synthetic', 'no local file', 'is out of reach. '):
    assert words in text
  assert 'and more' not in text


@pytest.mark.parametrize('source', ['digit', './nowhere', 'data/nowhere.csv'])
def test_what_is_no_hub_id_is_refused_without_the_network(source, monkeypatch):
  monkeypatch.setattr(datasets, 'load_dataset_builder', lambda *a, **k: 1 / 0)
  text = refused(source)
  assert 'was not tried' in text
  assert ("Did you mean 'digits'?" in text) == (source == 'digit')


def test_hub_flags_reach_the_hub(monkeypatch):
  asked = []

  def load_dataset(path, name, revision):
    asked.append((path, name, revision))
    return {'all': datasets.Dataset.from_dict({'text': ['a'], 'label': [0]})}

  monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
  builder = types.SimpleNamespace(config=None)
  monkeypatch.setattr(
    datasets, 'load_dataset_builder', lambda *_, **__: builder
  )
  sources.load(
    'some/thing', subset='de', revision='v2', train_split='all',
    encode_text=Encode(),
  )  # fmt: skip
  assert asked == [('some/thing', 'de', 'v2')]


def test_hub_flags_are_refused_for_local_files(tmp_path):
  path = write_csv(tmp_path)
  assert '`revision`' in refused(path, revision='v1')
  assert '`subset`' in refused(path, subset='de')


def test_files_that_cannot_be_read_are_refused(tmp_path):
  (tmp_path / 'a.xyz').write_text('hello')
  assert '.parquet' in refused(str(tmp_path / 'a.xyz'))
  (tmp_path / 'b.parquet').write_text('hello')
  assert 'cannot be read' in refused(str(tmp_path / 'b.parquet'))
  (tmp_path / 'empty').mkdir()
  assert 'cannot be read' in refused(str(tmp_path / 'empty'))
