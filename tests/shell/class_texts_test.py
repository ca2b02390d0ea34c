"""Class prompts of texts, from flags and files to logits."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from fedms_jax.adapters import lora
from fedms_jax.models import class_prompts, pretrained
from fedms_jax.persistence import peft
from fedms_jax.shell import foundation
from fedms_jax.shell.commands import export, export_heads
from fedms_jax.shell.config import validate
from tests import folders
from tests.shell.foundation_test import config, data

NAMES = ('ball goal team', 'moon', 'soup salt bread rice apple')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  made = tmp_path_factory.mktemp('checkpoints')
  for kind in ('bert', 'clip'):
    (made / kind).mkdir()
    folders.checkpoint(made / kind, kind)
  return made


def opened(root, kind='bert', inputs=None, **flags):
  """(config, checkpoint, model, params) with class prompts."""
  flat = {f'model__{k}' if '__' not in k else k: v for k, v in flags.items()}
  made = config(model__name=str(root / kind), model__head='zero_shot', **flat)
  validate(made)
  checkpoint = foundation.find(made.model)
  assert checkpoint is not None
  model = foundation.model(made.model, data(NAMES, inputs), checkpoint)
  params, head = foundation.load(
    made.model, made.data, model, NAMES, checkpoint, jax.random.key(0)
  )
  assert head == {}
  return made, checkpoint, model, params


def logits(made, checkpoint, model, params):
  """Of the names of the classes as texts of the data."""
  reading = foundation.reading(made.model, made.data, checkpoint, seed=0)
  tokens = reading['encode_text'](NAMES)['inputs']
  features = pretrained.encode(model.backbone, params, tokens)
  return np.asarray(model.backbone.logits(params, {}, features)), features


@pytest.mark.parametrize('pooling', ['', 'cls'])
def test_texts_that_are_the_prompts_are_their_own_classes(root, pooling):
  found, _ = logits(*opened(root, templates='{}', pooling=pooling))
  assert found.argmax(axis=1).tolist() == [0, 1, 2]
  np.testing.assert_allclose(np.diag(found), class_prompts.SCALE, rtol=1e-5)
  assert (found < class_prompts.SCALE * 0.999).sum() == 6


def test_a_short_cut_of_texts_leaves_the_prompts_whole(root):
  long, short = (
    opened(root, templates='{}', data__max_tokens=most)[-1]['final']['classes']
    for most in (20, 3)
  )
  np.testing.assert_array_equal(long, short)


@pytest.mark.parametrize(
  ('kind', 'usual'),
  [('bert', 'This sentence is {}'), ('clip', 'a photo of a {}.')],
)
def test_templates_are_those_of_what_is_classified(root, kind, usual):
  pixels = np.zeros((2, 16, 16, 3), np.uint8) if kind == 'clip' else None
  left, said = (
    opened(root, kind, pixels, templates=text)[-1]['final']['classes']
    for text in ('', usual)
  )
  np.testing.assert_array_equal(left, said)


@pytest.mark.parametrize(
  ('said', 'feature'),
  [
    ({'pooling_mode_cls_token': True, 'pooling_mode_mean_tokens': False},
     'cls'),
    ({'pooling_mode_max_tokens': True}, 'pooling_mode_max_tokens'),
    ({'pooling_mode': 'cls'}, 'cls'),
  ],
)  # fmt: skip
def test_the_feature_that_the_files_say_is_not_passed_over(
  root, tmp_path, said, feature
):
  for file in (root / 'bert').iterdir():
    (tmp_path / file.name).symlink_to(file)
  (tmp_path / '1_Pooling').mkdir()
  file = tmp_path / '1_Pooling' / 'config.json'
  file.write_text(json.dumps(said))
  with pytest.raises(ValueError, match=f'sentence is {feature}, and --model'):
    opened(tmp_path, '')
  opened(tmp_path, '', pooling='cls')
  file.write_text(json.dumps({'pooling_mode_mean_tokens': True}))
  opened(tmp_path, '')


def test_an_adapter_leaves_with_the_class_features(root, tmp_path, capsys):
  """Which the adapted encoder would not make again."""
  made, checkpoint, model, params = opened(root, templates='{}')
  expected, features = logits(made, checkpoint, model, params)
  spec = lora.Spec(4, 8.0, ('attn/q', 'attn/v'))
  blocks = spec.init(jax.random.key(0), params['blocks'])
  parts = {'blocks': jax.tree.map(np.asarray, blocks), 'head': {}}
  parts = export_heads.with_classes(model, parts, lambda: params)
  export._adapter(made, model, NAMES, checkpoint, parts, str(tmp_path))
  assert 'divided by its length' in capsys.readouterr().out
  file = tmp_path / export.HEAD
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  found = unit @ load_file(file)['weight'].T
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  with safe_open(file, 'numpy') as opened_file:
    assert NAMES[2] in opened_file.metadata()['labels']
  # Modules are named as in AutoModel, which has no head.
  names = list(load_file(tmp_path / peft.WEIGHTS))
  assert names and all(n.startswith('base_model.model.enc') for n in names)


def test_the_class_features_of_clip_can_be_made_again(root):
  pixels = np.zeros((2, 16, 16, 3), np.uint8)
  *_, model, params = opened(root, 'clip', pixels)
  parts = {'blocks': {}, 'head': {}}
  assert export_heads.with_classes(model, parts, lambda: params) is parts


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ({'name': 'bert'}, 'head=zero_shot does not go with --model.name=bert'),
    ({'keep_head': True}, 'has no classifier for --model.head=zero_shot'),
    ({'pooling': 'pooler'}, 'allowed: mean, cls'),
    ({'templates': 'news'}, '`templates` has .news.; allowed: one {}'),
    (
      {'stages': 'S2,fedms', 'pretrain__head': 'masked_lm'},
      '--model.head=zero_shot does not go with --stages',
    ),
  ],
)
def test_what_class_prompts_do_not_go_with_is_refused(root, flags, said):
  with pytest.raises(ValueError, match=said):
    flags = dict(flags)
    stages = {k: flags.pop(k) for k in ('stages',) if k in flags}
    flat = {k if '__' in k else f'model__{k}': v for k, v in flags.items()}
    flat = {'model__name': str(root / 'bert')} | flat | stages
    made = config(model__head='zero_shot', **flat)
    validate(made)
    opened(root, **flags)
