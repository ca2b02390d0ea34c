import io

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from fedms_jax.data import features, images, lazy, readers

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8)
IMAGES = [Image.fromarray(pixels) for pixels in PIXELS]


def split(types=None, **columns):
  types = types and datasets.Features(types)
  return datasets.Dataset.from_dict(columns, features=types)


class Encode:
  """Makes a column of each text's length."""

  max_tokens = 9

  def __init__(self, rows=None):
    self.rows = rows

  def tokens(self, texts, others=None):
    columns = {'inputs': self._lengths(texts[: self.rows])}
    if others is not None:
      columns['targets'] = self._lengths(others)
    return columns

  def _lengths(self, texts):
    return np.asarray([len(text) for text in texts], np.int32)[:, None]

  def finish(self, columns, rows, count):
    return columns


def read(*parts, **kwargs):
  """The table of all rows, read, and the groups."""
  kwargs = {
    'input_column': '', 'label_column': '', 'group_column': '',
    'image_size': 0,
    'encode_text': Encode(),
  } | kwargs  # fmt: skip
  table, groups = features.read(
    dict(zip(('train', 'test'), parts, strict=False)), **kwargs
  )
  return table._replace(columns=lazy.whole(table.columns)), groups


def refused(*parts, **kwargs):
  with pytest.raises(ValueError) as error:
    read(*parts, **kwargs)
  return str(error.value)


def found(**columns):
  """Which input and label column is chosen of columns by type."""
  known = {
    'image': datasets.Image(),
    'text': datasets.Value('string'),
    'class': datasets.ClassLabel(names=['a']),
  }
  types = {name: known[kind] for name, kind in columns.items()}
  label = features.find_label(types, '', '')
  return features.find_input(types, '', (label,)), label


def test_columns_are_found_by_type_before_name():
  assert found(photo='image', text='text', label='text') == ('photo', 'label')
  assert found(IMG='text', kind='class') == ('IMG', 'kind')
  assert found(img='image', fine_label='class', coarse_label='class') == (
    'img', 'fine_label'
  )  # fmt: skip


def test_ambiguous_columns_are_refused_with_the_flag():
  part = split(text=['a'], sentence=['b'], label=[0])
  text = refused(part)
  assert 'text, sentence' in text and '`input_column`' in text
  part = split(text=['a'], label=[0], target=[1])
  text = refused(part)
  assert 'label, target' in text and '`label_column`' in text
  table, _ = read(part, label_column='target')
  assert table.label_names == ('1',)


def test_the_column_of_groups_is_no_input():
  part = split(text=['a'], question=['who'], label=[0], y=[1])
  table, _ = read(part, group_column='question', label_column='label')
  assert table.columns['inputs'].tolist() == [[1]]
  _, groups = read(part, group_column='y', input_column='text')
  assert groups.tolist() == [0]


def test_missing_columns_are_refused_with_those_that_are():
  part = split(body=['a'], verdict=[0])
  text = refused(part, input_column='body')
  assert 'labels is not found. Columns: body, verdict' in text
  text = refused(part, label_column='verdict')
  assert '`input_column`' in text
  text = refused(part, label_column='verdct', input_column='body')
  assert "Did you mean 'verdict'?" in text
  text = refused(
    split(text=['a'], label=[0]), split(text=['a'], verdict=[0])
  )  # fmt: skip
  assert 'no column of the test split' in text


def test_declared_labels_keep_their_order_and_unused_classes():
  types = {
    'text': datasets.Value('string'),
    'label': datasets.ClassLabel(names=['low', 'high', 'mid']),
  }
  table, _ = read(split(types, text=['a', 'b'], label=[2, 0]))
  assert table.label_names == ('low', 'high', 'mid')
  assert table.columns['labels'].tolist() == [2, 0]


def test_other_labels_are_sorted_by_value():
  table, _ = read(
    split(text=['a', 'b'], label=[10, 9]),
    split(text=['c', 'd'], label=[-7, 9]),
  )
  assert table.label_names == ('-7', '9', '10')
  assert table.columns['labels'].tolist() == [2, 1, 0, 1]


def test_rows_without_label_are_refused():
  types = {
    'text': datasets.Value('string'),
    'label': datasets.ClassLabel(names=['a', 'b']),
  }
  text = refused(
    split(types, text=['a'], label=[0]),
    split(types, text=['a', 'b'], label=[1, -1]),
  )
  assert 'row 1 of the test split' in text and '`test_split`' in text
  assert 'row 0' in refused(split(text=['a', 'b'], label=[None, 1]))


@pytest.mark.parametrize('value', [0.5, [1, 2]])
def test_values_that_are_no_labels_are_refused(value):
  text = refused(split(text=['a'], label=[value]))
  assert repr(value) in text and '`label_column`' in text


def test_groups_belong_to_the_training_split_alone():
  _, groups = read(
    split(text=['a', 'b', 'c'], label=[0, 1, 0], user=['y', 'x', 'y']),
    split(text=['d'], label=[0]),
    group_column='user',
  )
  assert groups.dtype == np.int32
  assert groups.tolist() == [0, 1, 0, -1]
  part = split(text=['a', 'b'], label=[0, 1], user=['y', None])
  assert 'without a value' in refused(part, group_column='user')
  assert "Did you mean 'user'?" in refused(part, group_column='usr')


def test_texts_need_a_text_model_that_keeps_the_rows():
  part = split(text=['a', 'b'], label=[0, 1])
  assert '`encode_text`' in refused(part, encode_text=None)
  text = refused(part, encode_text=Encode(rows=1))
  assert "1 rows of 'inputs' for 2 texts" in text
  assert '`image_size`' in refused(part, image_size=8)
  assert 'row 1' in refused(split(text=['a', None], label=[0, 1]))


def test_names_of_image_files_are_refused():
  part = split(image=['a/1.png', 'a/2.JPG'], label=[0, 1])
  assert 'image files' in refused(part)


def test_numbers_are_refused_as_inputs():
  assert 'int64' in refused(split(x=[1, 2], label=[0, 1]))


@pytest.mark.parametrize('kind', ['image', 'lists', 'array'])
def test_pixels_are_the_same_however_they_are_stored(kind):
  types = {
    'image': datasets.Image(),
    'lists': datasets.List(datasets.List(datasets.Value('uint8'))),
    'array': datasets.Array2D((3, 3), 'uint8'),
  }
  part = split(
    {'x': types[kind], 'y': datasets.Value('int64')},
    x=IMAGES if kind == 'image' else PIXELS.tolist(),
    y=[0, 1],
  )
  table, _ = read(part, part)
  assert table.columns['inputs'].dtype == np.uint8
  np.testing.assert_array_equal(
    table.columns['inputs'][..., 0], np.concatenate([PIXELS, PIXELS])
  )


def png(picture):
  file = io.BytesIO()
  picture.save(file, 'PNG')
  return file.getvalue()


STORED = {
  'bytes and path': lambda b: {'bytes': b, 'path': 'a.png'},
  'path and bytes': lambda b: {'path': None, 'bytes': b},
  'bytes in a struct': lambda b: {'bytes': b},
  'bytes': lambda b: b,
}


@pytest.mark.parametrize('stored', STORED)
@pytest.mark.parametrize('kind', [pyarrow.binary(), pyarrow.large_binary()])
def test_encoded_images_are_read_however_they_are_stored(
  stored, kind, tmp_path
):
  """As pandas, pyarrow and Spark write them, who know no type of images."""
  rows = [STORED[stored](png(picture)) for picture in IMAGES]
  types = {'bytes': kind, 'path': pyarrow.string()}
  if isinstance(rows[0], dict):
    kind = pyarrow.struct([(name, types[name]) for name in rows[0]])
  made = pyarrow.table(
    {'img': pyarrow.array(rows, kind), 'text': ['a', 'b'], 'label': [0, 1]}
  )
  pyarrow.parquet.write_table(made, tmp_path / 'a.parquet')
  table, _ = read(
    datasets.Dataset.from_parquet(
      str(tmp_path / 'a.parquet'), cache_dir=str(tmp_path / 'cache')
    )
  )
  np.testing.assert_array_equal(table.columns['inputs'][..., 0], PIXELS)


def test_other_structs_and_absent_bytes_are_refused():
  part = split(img=[{'a': 1}, {'a': 2}], label=[0, 1])
  assert "'img' has {a} values" in refused(part)
  part = split(img=[png(IMAGES[0]), None], label=[0, 1])
  assert "row 1 of the train split has no image in 'img'" in refused(part)
  part = split(img=[png(IMAGES[0]), b''], label=[0, 1])
  assert "row 1 of the train split has no image in 'img'" in refused(part)


def test_float_images_are_refused_with_their_range():
  text = refused(split(x=(PIXELS / 255).tolist(), label=[0, 1]))
  assert 'float64 values from 0.0' in text and 'from 0 to 255' in text


@pytest.mark.parametrize('empty', ['', ' ', '\n'])
def test_texts_that_are_all_empty_are_refused(empty):
  text = refused(split(text=[empty, empty], label=[0, 1]))
  assert "all 2 rows of column 'text' are empty texts" in text
  assert read(split(text=[empty, 'a'], label=[0, 1]))


def test_ragged_arrays_are_refused():
  text = refused(split(x=[[[1, 2]], [[1], [2]]], y=[0, 1]))
  assert "column 'x' has arrays of different shapes" in text


def test_images_are_read_batch_by_batch_in_order(monkeypatch):
  monkeypatch.setattr(readers, 'BATCH', 2)
  images = [Image.new('L', (2, 2), i) for i in range(5)]
  types = {'img': datasets.Image(), 'label': datasets.Value('int64')}
  table, _ = read(split(types, img=images, label=[0, 1, 0, 1, 0]))
  assert table.columns['inputs'][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_an_absent_image_is_refused_with_its_row(monkeypatch):
  monkeypatch.setattr(readers, 'BATCH', 1)
  types = {'img': datasets.Image(), 'label': datasets.Value('int64')}
  text = refused(split(types, img=[IMAGES[0], None], label=[0, 1]))
  assert "row 1 of the train split has no image in 'img'" in text


def test_completions_go_to_the_encoder_with_their_prompts():
  part = split(prompt=['a', 'bb'], answer=['ccc', 'd'], label=[0, 1])
  table, _ = read(
    part, input_column='prompt', target_column='answer', encode_text=Encode()
  )
  assert table.columns['inputs'].tolist() == [[1], [2]]
  assert table.columns['targets'].tolist() == [[3], [1]]


def test_captions_are_a_column_beside_the_images():
  kinds = {'image': datasets.Image(), 'caption': datasets.Value('string')}
  part = split(kinds, image=IMAGES, caption=['a', 'bb'])
  table, _ = read(
    part, target_column='caption', need_labels=False, encode_text=Encode()
  )
  np.testing.assert_array_equal(table.columns['inputs'][..., 0], PIXELS)
  assert table.columns['texts'].tolist() == [[1], [2]]


def test_data_without_labels_has_one_class_where_none_are_needed():
  part = split(text=['a', 'bb'])
  table, _ = read(part, need_labels=False, encode_text=Encode())
  assert table.columns['labels'].tolist() == [0, 0]
  assert table.label_names == ('all',)
  assert 'labels is not found' in refused(part)


def test_labels_that_are_there_are_read_even_if_not_needed():
  part = split(text=['a', 'bb'], label=['x', 'y'])
  table, _ = read(part, need_labels=False, encode_text=Encode())
  assert table.label_names == ('x', 'y')


def test_the_target_column_is_never_found_as_another():
  part = split(sentence=['a'], question=['b'], label=[0])
  table, _ = read(part, target_column='question', encode_text=Encode())
  assert table.columns['inputs'].tolist() == [[1]]
  text = refused(part, input_column='sentence', target_column='questoin')
  assert '`target_column`' in text and "Did you mean 'question'?" in text


def test_a_model_s_own_preparation_replaces_the_size():
  kinds = {'image': datasets.Image(), 'label': datasets.Value('int64')}
  part = split(kinds, image=IMAGES, label=[0, 1])
  table, _ = read(part, prepare=images.Prepare(height=7, width=5))
  assert table.columns['inputs'].shape == (2, 7, 5, 1)
