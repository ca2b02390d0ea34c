"""What a checkpoint asks of the data, and what does not go together."""

import json

import jax
import numpy as np
import pytest

from fedms_jax.core.types import Federation, Table
from fedms_jax.data import images
from fedms_jax.models import preprocessors
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import foundation
from tests import folders


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  made = tmp_path_factory.mktemp('checkpoints')
  for kind in folders.CONFIGS:
    (made / kind).mkdir()
    folders.checkpoint(made / kind, kind)
  return made


def config(**values):
  flat = {k.replace('__', '.'): v for k, v in values.items()}
  return config_lib.from_values(flat)


def found(root, kind, **values):
  made = config(model__name=str(root / kind), **values)
  config_lib.validate(made)
  return made, foundation.find(made.model)


def asked(root, kind, **values):
  made, checkpoint = found(root, kind, **values)
  return foundation.reading(made.model, made.data, checkpoint, seed=0)


def data(names=('sky', 'food', 'sport'), inputs=None, **columns):
  inputs = np.zeros((4, 9), np.int32) if inputs is None else inputs
  labels = np.zeros(len(inputs), np.int32)
  table = Table({'inputs': inputs, 'labels': labels} | columns, names)
  return Federation(table, *[None] * 6)


def test_each_family_reads_its_own_kind_of_input(root):
  for kind in ('bert', 'gpt2', 'llama'):
    assert {'encode_text'} == set(asked(root, kind)) & {
      'encode_text', 'prepare'
    }  # fmt: skip
  prepare = asked(root, 'vit')['prepare']
  assert prepare == images.for_checkpoint(
    preprocessors.completed(folders.PREPROCESSOR, 'vit', '')
  )
  assert 'encode_text' not in asked(root, 'clip')
  assert 'prepare' not in asked(root, 'clip', model__tower='text')
  both = asked(
    root, 'clip', model__head='contrast', data__target_column='caption'
  )
  assert both['encode_text'] and both['prepare'] == prepare
  plain = config()
  assert foundation.reading(plain.model, plain.data, None, seed=0) == {}


def test_labels_are_needed_by_classifiers_alone(root):
  assert asked(root, 'gpt2')['need_labels']
  assert asked(root, 'clip', model__head='zero_shot')['need_labels']
  assert not asked(root, 'gpt2', model__head='causal_lm')['need_labels']


def test_texts_are_cut_to_what_the_model_takes(root):
  long = ' '.join(folders.WORDS * 3)
  encode = asked(root, 'gpt2', data__max_tokens=128)['encode_text']
  assert encode([long])['inputs'].shape == (1, 20)
  encode = asked(root, 'gpt2', data__max_tokens=7)['encode_text']
  assert encode([long])['inputs'].shape == (1, 7)


def test_roberta_has_fewer_positions_than_its_table(tmp_path):
  folders.tokenizer('bert').save(str(tmp_path / 'tokenizer.json'))
  words = folders.CONFIGS['bert'] | {'model_type': 'roberta', 'pad_token_id': 1}
  (tmp_path / 'config.json').write_text(json.dumps(words))
  made = config(model__name=str(tmp_path))
  checkpoint = foundation.find(made.model, weights=False)
  assert foundation.text_length(made.model, made.data, checkpoint) == 18


def test_the_head_is_new_unless_it_is_kept(root):
  pixels = np.zeros((2, 16, 16, 3), np.uint8)
  names, key = ('cat', 'dog'), jax.random.key(3)
  heads = {}
  for keep in (False, True):
    made, checkpoint = found(root, 'vit', model__keep_head=keep)
    model = foundation.model(made.model, data(names, pixels), checkpoint)
    _, heads[keep] = foundation.load(
      made.model, made.data, model, names, checkpoint, key
    )
  assert heads[True]['kernel'].shape == heads[False]['kernel'].shape
  assert np.any(heads[True]['kernel'] != heads[False]['kernel'])


def test_class_prompts_are_in_the_order_of_the_labels(root):
  def classes(names):
    made, checkpoint = found(
      root, 'clip', model__head='zero_shot',
      model__templates='a {} .|moon {} light',
    )  # fmt: skip
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    model = foundation.model(made.model, data(names, pixels), checkpoint)
    params, head = foundation.load(
      made.model, made.data, model, names, checkpoint, jax.random.key(0)
    )
    assert head == {}
    return np.asarray(params['final']['classes'])

  one, two = (
    classes(('ball', 'soup', 'star')),
    classes(('star', 'ball', 'soup')),
  )
  np.testing.assert_allclose(one[[2, 0, 1]], two, atol=1e-6)
  assert np.abs(one[0] - one[1]).max() > 1e-3


CHECKPOINT_ONLY = {
  'revision': 'v1', 'head': 'causal_lm', 'keep_head': True, 'tower': 'text',
  'templates': '{}', 'storage': 'bfloat16',
}  # fmt: skip


@pytest.mark.parametrize('name', CHECKPOINT_ONLY)
def test_the_built_in_model_refuses_flags_of_checkpoints(name):
  made = config(**{f'model__{name}': CHECKPOINT_ONLY[name]})
  with pytest.raises(ValueError, match=f'--model.{name}='):
    config_lib.validate(made)


def test_checkpoints_refuse_the_shape_of_the_built_in_model(root):
  defaults = config_lib.ModelConfig()
  for name in ('patch', 'width', 'blocks', 'heads', 'mlp_ratio'):
    other = getattr(defaults, name) + 1
    with pytest.raises(ValueError, match=f'--model.{name}='):
      found(root, 'bert', **{f'model__{name}': other})


@pytest.mark.parametrize(
  ('kind', 'flags', 'message'),
  [
    ('vit', {'data__image_size': 8}, '--data.image_size=8'),
    ('bert', {'data__pack': True}, '--data.pack'),
    ('bert', {'data__target_column': 'b'}, '--data.target_column=b'),
    ('clip', {'model__head': 'contrast'}, 'captions are not named'),
    ('gpt2', {'model__head': 'masked_lm'}, 'allowed: classification, causal'),
    ('bert', {'model__head': 'contrast'}, 'captions are not named'),
    ('bert', {'model__pooling': 'last'}, 'allowed: cls, mean, pooler'),
  ],
)
def test_what_does_not_go_together_is_refused(root, kind, flags, message):
  with pytest.raises(ValueError, match=message):
    made, checkpoint = found(root, kind, **flags)
    foundation.reading(made.model, made.data, checkpoint, seed=0)
    foundation.model(made.model, data(), checkpoint)


def test_the_built_in_model_wants_square_images():
  with pytest.raises(ValueError, match='reads images'):
    foundation.model(config().model, data(), None)
  oblong = np.zeros((2, 8, 6, 1), np.uint8)
  with pytest.raises(ValueError, match='8 x 6'):
    foundation.model(config().model, data(inputs=oblong), None)
  square = np.zeros((2, 8, 8, 1), np.uint8)
  with pytest.raises(ValueError, match="--model.pooling='last'"):
    m = config(model__pooling='last').model
    foundation.model(m, data(inputs=square), None)
