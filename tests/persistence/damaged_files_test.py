"""Damaged files of a model: one message that names the file and the way out."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedms_jax.models import pretrained
from fedms_jax.persistence import json_files, model_export, model_files
from tests import folders
from tests.persistence.model_files_test import CONFIGS, equal, write

POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'


@pytest.fixture
def folder(tmp_path):
  return folders.checkpoint(tmp_path, 'gpt2')


def header(**tensors):
  """The start of a file whose header says this."""
  text = json.dumps(tensors).encode()
  return struct.pack('<Q', len(text)) + text


def entry(dtype='F32', shape=(2,), start=0, end=8):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, end]}


DAMAGES = {
  'nothing': b'',
  'few bytes': b'\x01\x02\x03',
  'a length alone': struct.pack('<Q', 40),
  'a huge header': struct.pack('<Q', 2**60) + b'{}',
  'a negative length': struct.pack('<q', -1) + b'{}',
  'no JSON': struct.pack('<Q', 4) + b'{"a"',
  'no UTF-8': struct.pack('<Q', 4) + b'\xff\xfe\xff\xfe',
  'a list': struct.pack('<Q', 2) + b'[]',
  'no values': header(a=entry()),
  'values that overlap': header(a=entry(), b=entry(start=4, end=12))
  + bytes(12),
  'a hole': header(a=entry(), b=entry(start=12, end=20)) + bytes(20),
  'a wrong size': header(a=entry(shape=(3,))) + bytes(8),
  'a backward range': header(a=entry(start=8, end=0)) + bytes(8),
  'a negative shape': header(a=entry(shape=(-2,))) + bytes(8),
  'an overflow': header(a=entry(shape=(2**62, 2**62))) + bytes(8),
  'an unknown type': header(a=entry(dtype='F7')) + bytes(8),
  'eight bits': header(a=entry('F8_E4M3', (8,))) + bytes(8),
  'a pickle': pickle.dumps({'a': 1}),
  'a zip of PyTorch': b'PK\x03\x04' + bytes(60),
  'a pointer': POINTER.encode(),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_tensors_are_refused_by_file(damage, folder):
  (folder / model_files.WEIGHTS).write_bytes(DAMAGES[damage])
  with pytest.raises(ValueError, match=r'model\.safetensors') as error:
    model_files.find(str(folder))
  assert '\n' not in str(error.value)
  assert ('git lfs pull' in str(error.value)) == (damage == 'a pointer')
  assert ('pickle' in str(error.value)) == ('P' in damage or 'pick' in damage)


def test_a_file_that_was_cut_is_refused(folder):
  file = folder / model_files.WEIGHTS
  file.write_bytes(file.read_bytes()[:1000])
  with pytest.raises(ValueError, match=r'model\.safetensors is damaged'):
    model_files.find(str(folder))


TEXTS = {
  'cut': '{"a": 1',
  'empty': '',
  'a list': '[]',
  'a word': '"a"',
  'deep': '[' * 100_000,
  'NaN': '{"a": NaN}',
  'a long number': '{"a": ' + '1' * 5000 + '}',
  'a pointer': POINTER,
  'binary': b'\xff\x00',
}
FILES = (
  'config.json',
  model_files.TOKENIZER,
  model_files.ADDED,
  model_files.PREPROCESSOR,
  model_files.PROCESSOR,
)


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('text', TEXTS)
def test_broken_json_is_refused_by_file(name, text, folder):
  value = TEXTS[text]
  data = value if isinstance(value, bytes) else value.encode()
  (folder / name).write_bytes(data)
  with pytest.raises(ValueError, match=name) as error:
    model_files.find(str(folder))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text', TEXTS)
def test_a_broken_index_is_refused(text, folder):
  (folder / model_files.WEIGHTS).unlink()
  value = TEXTS[text]
  data = value if isinstance(value, bytes) else value.encode()
  (folder / model_files.INDEX).write_bytes(data)
  with pytest.raises(ValueError, match='safetensors.index.json'):
    model_files.find(str(folder))


@pytest.mark.parametrize(
  'name',
  ['../good/model.safetensors', '/etc/passwd', 'a/b.safetensors', '..',
   'a\\b.safetensors', '.hidden.safetensors', 'weights.bin', 3, None, ['a']],
)  # fmt: skip
def test_an_index_names_files_of_its_own_folder_alone(name, folder):
  (folder / model_files.WEIGHTS).unlink()
  index = json.dumps({'weight_map': {'x': name}})
  (folder / model_files.INDEX).write_text(index)
  with pytest.raises(ValueError, match='same folder'):
    model_files.find(str(folder))


def sharded(folder):
  """Splits a folder's tensors in two files with an index."""
  found = load_file(folder / model_files.WEIGHTS)
  parts = {f'{i}.safetensors': sorted(found)[i::2] for i in (0, 1)}
  for file, names in parts.items():
    save_file({name: found[name] for name in names}, folder / file)
  weight_map = {n: file for file, names in parts.items() for n in names}
  index = json.dumps({'weight_map': weight_map})
  (folder / model_files.INDEX).write_text(index)
  return weight_map


def test_a_whole_file_comes_before_an_index_that_was_left(folder):
  sharded(folder)
  for file in ('0', '1'):
    (folder / f'{file}.safetensors').unlink()
  found = model_files.find(str(folder))
  assert {t.file.name for t in found.tensors.values()} == {model_files.WEIGHTS}


def test_an_index_says_in_which_file_a_tensor_is(folder):
  weight_map = sharded(folder)
  (folder / model_files.WEIGHTS).unlink()
  first = next(name for name, file in weight_map.items() if file[0] == '0')
  other = load_file(folder / '1.safetensors')
  stale = other | {first: np.zeros(3, np.float32)}
  save_file(stale, folder / '1.safetensors')
  found = model_files.find(str(folder)).tensors[first]
  assert found.file.name == '0.safetensors'
  index = json.dumps({'weight_map': weight_map | {'lost': '1.safetensors'}})
  (folder / model_files.INDEX).write_text(index)
  with pytest.raises(ValueError, match='lost, which it has not'):
    model_files.find(str(folder))


def test_integers_are_no_weights(tmp_path):
  model, *_ = write(tmp_path, *CONFIGS['gpt2'])
  found = load_file(tmp_path / model_files.WEIGHTS)
  name = 'transformer.h.0.mlp.c_fc.weight'
  found[name] = found[name].astype(np.int8)
  save_file(found, tmp_path / model_files.WEIGHTS)
  with pytest.raises(ValueError, match=f'wrong type: {name} I8'):
    model_files.load(model, model_files.find(str(tmp_path)))


TIED = {
  'gpt2': ('lm_head.weight', 'transformer.wte.weight'),
  'roberta': (
    'lm_head.decoder.weight',
    'roberta.embeddings.word_embeddings.weight',
  ),
}


@pytest.mark.parametrize('kind', TIED)
def test_a_tied_tensor_may_be_repeated_but_not_differ(kind, tmp_path):
  name, source = TIED[kind]
  model, params, _ = write(tmp_path, *CONFIGS[kind])
  file = tmp_path / model_files.WEIGHTS
  found = load_file(file)
  save_file(found | {name: found[source].copy()}, file)
  checkpoint = model_files.find(str(tmp_path))
  equal(model_files.load(model, checkpoint)[0], params)
  # A copy that was left behind would be another model for transformers.
  model_export.save(model, params, tmp_path / 'out', checkpoint)
  assert name not in load_file(tmp_path / 'out' / model_files.WEIGHTS)
  save_file(found | {name: found[source] + 1}, file)
  with pytest.raises(ValueError, match='although they are tied'):
    model_files.load(model, model_files.find(str(tmp_path)))


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
  tmp_path, monkeypatch
):
  model, *_ = write(tmp_path, *CONFIGS['gpt2'])
  checkpoint = model_files.find(str(tmp_path))
  monkeypatch.setattr(model_files.memory, 'device', lambda: 1000.0)
  monkeypatch.setattr(model_files.tensors, 'leaf', None)  # reads
  with pytest.raises(ValueError, match='are free'):
    model_files.load(model, checkpoint)


def test_sizes_of_a_config_are_held_against_the_tensors(tmp_path):
  config, options = CONFIGS['llama']
  write(tmp_path, config, options)
  checkpoint = model_files.find(str(tmp_path))
  wide = {'hidden_size': 2**30, 'vocab_size': 2**31 - 1}
  model = pretrained.model(config | wide | {'num_hidden_layers': 9000}, options)
  with pytest.raises(ValueError, match='wrong shape'):
    model_files.load(model, checkpoint)


def test_the_type_of_what_is_written_is_in_the_config(tmp_path):
  config, options = CONFIGS['llama']
  said = {'dtype': 'bfloat16', 'torch_dtype': 'bfloat16'}
  model, params, _ = write(tmp_path / 'in', config | said, options)
  source = model_files.find(str(tmp_path / 'in'))
  model_export.save(model, params, tmp_path / 'out', source)
  found = json_files.read(tmp_path / 'out' / 'config.json')
  assert found['dtype'] == found['torch_dtype'] == 'float32'


def test_a_head_never_leaves_for_another_feature(tmp_path):
  config, _ = CONFIGS['bert']
  write(tmp_path / 'in', config | {'problem_type': 'x'}, CONFIGS['bert'][1])
  source = model_files.find(str(tmp_path / 'in'))
  options = CONFIGS['bert'][1].__class__(classes=3, pooling='mean')
  model = pretrained.model(config, options)
  params, _ = model_files.load(model, source)
  head = {'kernel': np.zeros((32, 3)), 'bias': np.zeros(3)}
  with pytest.raises(ValueError, match='no class of transformers'):
    model_export.save(model, params, tmp_path / 'out', source, head=head)
  model_export.save(model, params, tmp_path / 'out', source)
  names = load_file(tmp_path / 'out' / model_files.WEIGHTS)
  assert 'classifier.weight' not in names  # which was the source's
  found = json_files.read(tmp_path / 'out' / 'config.json')
  assert not {'id2label', 'problem_type', 'architectures'} & found.keys()
