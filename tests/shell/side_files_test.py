"""The files of a checkpoint are held against each other before a run."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from fedms_jax.models import clip
from fedms_jax.models.family import Options
from fedms_jax.persistence import model_files
from fedms_jax.shell import foundation
from tests import folders
from tests.models import references
from tests.shell.foundation_test import config, data

NAMES = ('food', 'sky', 'sport')


@pytest.fixture(params=['bert', 'vit'])
def classifier(request, tmp_path):
  """A folder with a head that knows the classes by name."""
  pooling = 'pooler' if request.param == 'bert' else 'cls'
  options = Options(classes=3, pooling=pooling)
  folders.checkpoint(tmp_path, request.param, options)
  change(tmp_path, 'config.json', id2label=dict(enumerate(NAMES)))
  return tmp_path


def change(folder, name, **values):
  file = folder / name
  found = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps(found | values))


def kept(folder, names, **values):
  """The head that is kept for data of these classes."""
  made = config(model__name=str(folder), model__keep_head=True, **values)
  checkpoint = foundation.find(made.model)
  images = checkpoint.config['model_type'] == 'vit'
  inputs = np.zeros((2, 16, 16, 3), np.uint8) if images else None
  model = foundation.model(made.model, data(names, inputs), checkpoint)
  return foundation.load(
    made.model, made.data, model, names, checkpoint, jax.random.key(0)
  )[1]


def test_the_outputs_of_a_kept_head_are_those_of_the_names(classifier):
  change(classifier, 'config.json', label2id={})
  own = kept(classifier, NAMES)
  for names in (('sky', 'Sport', 'FOOD'), ('sport', 'food', 'sky')):
    found = kept(classifier, names)
    places = [NAMES.index(name.lower()) for name in names]
    for leaf, value in own.items():
      np.testing.assert_array_equal(found[leaf], value[..., places])


@pytest.mark.parametrize(
  ('values', 'names', 'message'),
  [
    ({}, ('food', 'sky', 'music'), 'knows the classes'),
    ({'problem_type': 'regression'}, NAMES, 'regression'),
    ({'problem_type': 'multi_label_classification'}, NAMES, 'multi_label'),
    ({'architectures': ['BertForTokenClassification']}, NAMES, 'ForToken'),
  ],
)
def test_a_head_for_something_else_is_refused(
  values, names, message, classifier
):
  change(classifier, 'config.json', label2id={}, **values)
  with pytest.raises(ValueError, match=message):
    kept(classifier, names)


def test_a_head_is_kept_for_classification_alone(tmp_path):
  folders.checkpoint(tmp_path, 'gpt2')
  with pytest.raises(ValueError, match='--model.keep_head.*no classifier'):
    kept(tmp_path, NAMES, model__head='causal_lm')


def reading(folder, **values):
  made = config(model__name=str(folder), **values)
  checkpoint = foundation.find(made.model)
  return foundation.reading(made.model, made.data, checkpoint, seed=0)


@pytest.mark.parametrize('both', [True, False])
def test_the_newer_file_of_a_processor_holds(both, tmp_path):
  folders.checkpoint(tmp_path, 'clip')
  own = folders.PREPROCESSOR | {'size': {'shortest_edge': 17}}
  nested = {'image_processor': own, 'processor_class': 'CLIPProcessor'}
  change(tmp_path, model_files.PROCESSOR, **nested)
  if not both:
    (tmp_path / model_files.PREPROCESSOR).unlink()
  assert reading(tmp_path)['prepare'].shortest == 17
  found = model_files.find(str(tmp_path)).preprocessor
  assert found['image_mean'] == own['image_mean']


def test_a_processor_without_images_leaves_the_older_file(tmp_path):
  folders.checkpoint(tmp_path, 'clip')
  change(tmp_path, model_files.PROCESSOR, processor_class='CLIPProcessor')
  assert reading(tmp_path)['prepare'].shortest == 18


def test_what_a_preprocessor_leaves_out_is_usual_for_its_class(tmp_path):
  folders.checkpoint(tmp_path, 'vit')
  file = tmp_path / model_files.PREPROCESSOR
  file.write_text('{"image_processor_type": "CLIPImageProcessor"}')
  found = model_files.find(str(tmp_path)).preprocessor
  assert found['image_mean'] == list(clip.MEAN)
  assert found['size'] == {'shortest_edge': 224} and found['do_center_crop']


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'crop_size': 24}, '24 x 24.*image_size=16'),
    ({'do_center_crop': False, 'size': 24}, '24 x 24.*image_size=16'),
    ({'crop_size': {'height': 16, 'width': 24}}, 'squares'),
    ({'resample': 'x'}, 'resample'),
    ({'resample': 9}, 'resample'),
    ({'size': {'longest_edge': 16}}, 'size'),
    ({'size': 0}, 'size'),
    ({'size': '16'}, 'size'),
    ({'image_std': [0.5, 0, 0.5]}, 'image_std'),
    ({'image_mean': 'x'}, 'image_mean'),
    ({'do_center_crop': 'no'}, 'do_center_crop'),
    ({'do_pad': True}, 'do_pad'),
    ({'do_flip_channel_order': True}, 'do_flip_channel_order'),
    ({'use_square_size': True}, 'use_square_size'),
    ({'image_processor_type': 'ConvNextImageProcessor'}, 'ConvNext'),
  ],
)
def test_a_preprocessor_that_does_not_fit_is_refused(values, message, tmp_path):
  folders.checkpoint(tmp_path, 'vit')
  change(tmp_path, model_files.PREPROCESSOR, **values)
  with pytest.raises(ValueError, match=message):
    reading(tmp_path)


def test_images_that_come_out_in_another_size_are_refused(tmp_path):
  """Where only the shorter edge is given, the images themselves tell."""
  folders.checkpoint(tmp_path, 'vit')
  change(tmp_path, model_files.PREPROCESSOR, do_center_crop=False)
  made = config(model__name=str(tmp_path))
  checkpoint = foundation.find(made.model)
  foundation.reading(made.model, made.data, checkpoint, seed=0)
  pixels = np.zeros((2, 18, 18, 3), np.uint8)
  with pytest.raises(ValueError, match='18 x 18.*image_size=16'):
    foundation.model(made.model, data(inputs=pixels), checkpoint)


@pytest.mark.parametrize('kind', ['bert', 'gpt2', 'llama'])
def test_a_tokenizer_with_more_ids_than_the_model_is_refused(kind, tmp_path):
  folders.checkpoint(tmp_path, kind)
  most = len(folders.VOCABULARY)
  change(tmp_path, 'config.json', vocab_size=most)
  assert reading(tmp_path)['encode_text']
  change(tmp_path, 'config.json', vocab_size=most - 1)
  with pytest.raises(ValueError, match=f'beyond vocab_size={most - 1}'):
    reading(tmp_path)


@pytest.mark.parametrize('end', [60, -1, 'x', [2.0], True])
def test_an_end_that_is_no_token_is_refused(end, tmp_path):
  folders.checkpoint(tmp_path, 'gpt2')
  change(tmp_path, 'config.json', eos_token_id=end)
  assert reading(tmp_path)['encode_text'].end == -1
  with pytest.raises(ValueError, match='eos_token_id'):
    reading(tmp_path, model__head='causal_lm')


@pytest.mark.parametrize('kind', ['roberta', 'xlm-roberta'])
@pytest.mark.parametrize('padding', [0, 1, 3])
def test_positions_start_behind_the_padding(kind, padding, tmp_path):
  folders.tokenizer('bert').save(str(tmp_path / 'tokenizer.json'))
  words = {'model_type': kind, 'pad_token_id': padding, **references.WORDS}
  change(tmp_path, 'config.json', **words)
  made = config(model__name=str(tmp_path), data__max_tokens=514)
  checkpoint = foundation.find(made.model, weights=False)
  asked = foundation.reading(made.model, made.data, checkpoint, seed=0)
  encode = asked['encode_text']
  assert encode.max_tokens == 20 - padding - 1


def test_a_tokenizer_may_take_fewer_tokens_than_the_model(tmp_path):
  folders.checkpoint(tmp_path, 'gpt2')
  said = {'model_max_length': 5, 'truncation_side': 'left'}
  change(tmp_path, model_files.TOKENIZER, **said)
  encode = reading(tmp_path)['encode_text']
  assert (encode.max_tokens, encode.side) == (5, 'left')


def test_words_that_nobody_knows_are_told_once(tmp_path, capsys):
  folders.checkpoint(tmp_path, 'bert')
  change(tmp_path, 'config.json', mixture='deep', initializer_range=0.1)
  change(tmp_path, model_files.TOKENIZER, split_on_dashes=True)
  made = config(model__name=str(tmp_path))
  foundation.model(made.model, data(), foundation.find(made.model))
  said = capsys.readouterr().err
  assert said.count('\n') == 1
  assert 'mixture (config.json), split_on_dashes' in said
  assert 'initializer_range' not in said
