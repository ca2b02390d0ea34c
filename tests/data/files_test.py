"""What a file of the data says opens nothing outside the data's folder."""

import json
import logging
import logging.handlers
import os
import threading
import zipfile

import datasets.config
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from fedms_jax.data import files, lazy, sources

PIXELS = np.full((4, 4, 3), 7, np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  cache = tmp_path / 'cache'
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', cache)


@pytest.fixture
def data(tmp_path):
  folder = tmp_path / 'data'
  folder.mkdir()
  return folder


def refused(source):
  """The message that a source is refused with, whose rows are all read."""
  with pytest.raises(ValueError) as error:
    lazy.whole(sources.load(str(source)).table.columns)
  assert '\n' not in str(error.value)
  return str(error.value)


def rows(folder, paths, image=True, name='train.parquet'):
  """Parquet of images that are paths alone."""
  struct = {k: datasets.Value(t) for k, t in
            (('bytes', 'binary'), ('path', 'string'))}  # fmt: skip
  kind = datasets.Image() if image else struct
  types = {'image': kind, 'label': datasets.Value('int64')}
  found = {
    'image': [{'bytes': None, 'path': str(path)} for path in paths],
    'label': list(range(len(paths))),
  }
  # Without `datasets`, which would put the bytes in.
  schema = datasets.Features(types).arrow_schema
  pyarrow.parquet.write_table(pyarrow.table(found, schema), folder / name)


@pytest.mark.parametrize('image', [True, False])
def test_a_path_in_a_row_stays_inside_the_folder(data, tmp_path, image):
  Image.fromarray(PIXELS).save(data / 'in.png')
  Image.fromarray(PIXELS).save(tmp_path / 'out.png')
  rows(
    data, ['in.png', data / 'in.png', data / '..' / 'data' / 'in.png'], image
  )
  found = lazy.whole(sources.load(str(data)).table.columns)['inputs']
  np.testing.assert_array_equal(found, [PIXELS] * 3)
  for wrong in (tmp_path / 'out.png', '../out.png', '/etc/passwd'):
    rows(data, ['in.png', wrong], image)
    text = refused(data)
    assert (
      f'row 1 of the train split names {str(wrong)!r}, which is out' in text
    )


def test_a_link_of_the_folder_is_the_users_own(data, tmp_path):
  Image.fromarray(PIXELS).save(tmp_path / 'out.png')
  (data / 'in.png').symlink_to(tmp_path / 'out.png')
  rows(data, ['in.png', 'in.png'])
  found = lazy.whole(sources.load(str(data)).table.columns)['inputs']
  np.testing.assert_array_equal(found, [PIXELS] * 2)


@pytest.mark.parametrize('card', ['README.md', '.huggingface.yaml'])
@pytest.mark.parametrize('target', ['../out.csv', '{parent}/out.csv'])
def test_what_a_card_names_stays_inside_the_folder(
  data, tmp_path, card, target
):
  (tmp_path / 'out.csv').write_text('text,label\na,0\n')
  (data / 'in.csv').write_text('text,label\na,0\n')
  named = target.format(parent=tmp_path)
  text = f'configs:\n- config_name: default\n  data_files: "{named}"\n'
  if card == 'README.md':
    text = f'---\n{text}---\n'
  (data / card).write_text(text)
  assert 'outside of the folder of the data' in refused(data)


@pytest.mark.parametrize('whole', [True, False])
def test_what_a_saved_data_set_names_stays_inside(data, tmp_path, whole):
  made = datasets.Dataset.from_dict({'x': [[[1]], [[2]]], 'label': [0, 1]})
  made.save_to_disk(tmp_path / 'other')
  datasets.DatasetDict({'train': made}).save_to_disk(data)
  if whole:
    (data / 'dataset_dict.json').write_text(
      json.dumps({'splits': ['../other']})
    )
  else:
    state = json.loads((data / 'train' / 'state.json').read_text())
    name = state['_data_files'][0]['filename']
    state['_data_files'] = [{'filename': f'../../other/{name}'}]
    (data / 'train' / 'state.json').write_text(json.dumps(state))
  assert 'outside of the folder of the data' in refused(data)


@pytest.mark.parametrize('name', ['train.csv', 'a/x.png', 'metadata.jsonl'])
def test_a_pipe_is_never_opened(data, name):
  (data / 'b.csv').write_text('text,label\na,0\n')
  (data / name).parent.mkdir(exist_ok=True)
  os.mkfifo(data / name)
  assert 'is a pipe, which is not opened' in refused(data)
  if name == 'train.csv':
    assert 'is a pipe, which is not opened' in refused(data / name)


def test_a_pipe_that_a_row_names_is_never_opened(data, monkeypatch):
  rows(data, ['x.png', 'x.png'])
  monkeypatch.setattr(files, 'check_folder', lambda folder: None)  # came later
  os.mkfifo(data / 'x.png')
  found = []
  reader = threading.Thread(
    target=lambda: found.append(refused(data)), daemon=True
  )
  reader.start()
  reader.join(60)
  assert found and 'x.png is a pipe' in found[0]


def test_devices_are_no_data(data):
  assert 'is a device' in refused('/dev/null')
  (data / 'train.csv').symlink_to('/dev/zero')
  assert 'is a device' in refused(data)
  assert 'root of the file system' in refused('/')


@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'parquet', 'zip'])
def test_a_file_that_was_replaced_is_read_anew(data, ending):
  """Also one of the same size and time, as cp -p and rsync -t leave it."""
  path = data / f'train.{ending}'

  def labels(kind, level):
    found = {'x': [[[level]], [[9]]], 'label': [kind, 'same']}
    if ending in ('csv', 'zip'):
      found['x'] = ['a', 'b']
    made = datasets.Dataset.from_dict(found)
    if ending == 'zip':
      made.to_csv(data / 'a.csv')
      with zipfile.ZipFile(path, 'w') as archive:
        archive.write(data / 'a.csv', 'a.csv')
      (data / 'a.csv').unlink()
    else:
      getattr(made, f'to_{ending.removesuffix("l")}')(path)
    os.utime(path, (1e9, 1e9))
    source = sources.load(
      str(path.parent if ending == 'zip' else path),
      encode_text=Encode(),
    )
    return set(source.table.label_names)

  assert labels('one', 5) == {'one', 'same'}
  assert labels('two', 6) == {'two', 'same'}


class Encode:
  max_tokens = 9

  def tokens(self, texts, others=None):
    return {'inputs': np.zeros((len(texts), 1), np.int32)}

  def finish(self, columns, rows, count):
    return columns


def test_a_digest_sees_head_tail_and_name_of_large_files(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'WHOLE', 100)
  monkeypatch.setattr(files, 'END', 10)
  path = tmp_path / 'a.csv'

  def digest(content):
    path.write_bytes(content)
    return files.digest([path])

  plain = digest(b'x' * 200)
  assert digest(b'x' * 200) == plain
  for other in (b'y' + b'x' * 199, b'x' * 199 + b'y', b'x' * 201):
    assert digest(other) != plain
  path.rename(tmp_path / 'b.csv')
  assert files.digest([tmp_path / 'b.csv']) != plain


@pytest.mark.parametrize(
  ('name', 'content', 'said'),
  [
    ('a.csv', 'text,label\na,0\nb,1,2,3\n', 'line 3, saw 4'),
    ('a.csv', '', 'No columns to parse'),
    ('a.csv', b'text,label\n\xff\xfe,0\n', "can't decode byte 0xff"),
    ('a.jsonl', '{"text": "a", "label": 0}\n{"text": "b", "la', 'JSON parse'),
    ('a.json', '[{"text": "a", "label": 0}', ''),
    ('a.parquet', 'PAR1', ''),
    ('a.arrow', 'x', ''),
  ],
)
def test_the_cause_of_a_torn_file_is_said(data, name, content, said):
  if isinstance(content, str):
    content = content.encode()
  (data / name).write_bytes(content)
  for source in (data / name, data):
    text = refused(source)
    assert said in text and 'generating the dataset' not in text


def test_the_log_of_datasets_says_nothing_beside_the_message(data):
  records = logging.handlers.BufferingHandler(100)
  (data / 'a.csv').write_text('text,label\na,0\nb,1,2,3\n')
  logger = logging.getLogger('datasets')
  logger.addHandler(records)
  try:
    level = logger.level
    refused(data)
  finally:
    logger.removeHandler(records)
  assert not records.buffer and logger.level == level


def test_names_that_no_system_takes_are_refused():
  assert len(refused('a' * 5000)) < 500
  assert 'no local file' in refused('a\0b')
