"""DINOv2's positions, SigLIP's texts, and towers with files of their own."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from fedms_jax.models import dinov2, pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import model_files
from fedms_jax.shell import foundation, side_files
from tests import folders
from tests.models.references import tokens, walk, weights
from tests.persistence.model_files_test import CONFIGS
from tests.shell.foundation_test import config as config_of

TEXTS = pretrained.WORDS.keys() - {'clip', 'siglip'}  # have images, too


def model(kind, **options):
  config, usual = CONFIGS[kind]
  return pretrained.model(config, dataclasses.replace(usual, **options))


def logits(made, inputs):
  params, head = weights(made, 0.3)
  return np.asarray(walk(made.backbone, params, head, inputs)[-1])


@pytest.mark.parametrize('smooth', [False, True])
def test_interpolated_positions_keep_constants_and_their_own_grid(smooth):
  grid = np.random.default_rng(0).normal(size=(6, 6, 3)).astype(np.float32)
  np.testing.assert_array_equal(dinov2.resized(grid, 6, smooth), grid)
  flat = dinov2.resized(np.ones((6, 6, 3), np.float32), 4, smooth)
  np.testing.assert_allclose(flat, np.ones((4, 4, 3)), atol=1e-6)


@pytest.mark.parametrize('kind', pretrained.RESIZED)
def test_the_size_that_the_preprocessor_makes_is_that_of_the_plan(kind):
  config, options = CONFIGS[kind]
  options = dataclasses.replace(options, image_side=0)
  words = {
    'size': {'shortest_edge': 8}, 'do_resize': True, 'do_center_crop': True,
    'crop_size': {'height': 8, 'width': 8},
  }  # fmt: skip
  own = pretrained.model(config, options).backbone.cost.tokens
  less = pretrained.model(config, options, words).backbone.cost.tokens
  cells = (8 // config['patch_size']) ** 2
  before = (config['image_size'] // config['patch_size']) ** 2
  assert own - less == before - cells > 0
  assert pretrained.image_side(config, words) == 8
  words['crop_size'] = {'height': 9, 'width': 9}
  with pytest.raises(ValueError, match='9 x 9 .*patch_size'):
    pretrained.model(config, options, words)


def test_a_text_of_siglip_is_read_with_what_fills_it_up():
  """So it does not matter who fills it, nor how wide the others are."""
  made = model('siglip_text_model')
  short = tokens(3, 9)
  filled = np.full((3, 12), 1, np.int32)
  filled[:, :9] = np.where(short < 0, 1, short)
  padded = np.pad(short, ((0, 0), (0, 2)), constant_values=-1)
  expected = logits(made, short)
  np.testing.assert_array_equal(logits(made, filled), expected)
  np.testing.assert_array_equal(logits(made, padded), expected)
  other = model('siglip_text_model', padding=5)
  assert np.abs(logits(other, short) - expected).max() > 1e-3


def test_the_token_that_fills_up_is_that_of_the_tokenizer(tmp_path):
  config, _ = CONFIGS['siglip_text_model']
  (tmp_path / 'config.json').write_text(json.dumps(config))

  def found(**said):
    file = tmp_path / model_files.TOKENIZER
    file.write_text(json.dumps(said))
    return side_files.padding(model_files.find(str(tmp_path), weights=False))

  assert found(pad_token='[SEP]') == -1  # there is no tokenizer.json
  folders.tokenizer('gpt2').save(str(tmp_path / 'tokenizer.json'))
  assert found() == -1
  assert found(pad_token={'content': '[SEP]'}) == folders.VOCABULARY['[SEP]']
  with pytest.raises(ValueError, match='pad_token'):
    found(pad_token='<nowhere>')


@pytest.mark.parametrize('kind', ['siglip', 'clip'])
def test_a_contrast_is_learned_as_its_family_is(kind):
  m = config_of(model__head='contrast', model__name='somewhere').model
  loss = foundation.task(m, model(kind)).loss
  batch = {'mask': np.ones(2, bool)}
  certain = np.array([[9.0, 9.0], [9.0, 9.0]], np.float32)
  value = float(loss(certain, batch)[0][0])
  # One by one, the wrong pair of logit 9 costs 9; among all, log 2.
  assert abs(value - (9.0 if kind == 'siglip' else np.log(2))) < 1e-3


@pytest.mark.parametrize(
  'kind',
  ['clip_vision_model', 'clip_text_model', 'siglip_vision_model',
   'siglip_text_model'],
)  # fmt: skip
def test_a_tower_alone_has_no_contrast(kind):
  for head in ('contrast', 'zero_shot', 'masked_lm'):
    with pytest.raises(ValueError, match='allowed: classification'):
      model(kind, head=head)


@pytest.mark.parametrize(
  'kind', [kind for kind in CONFIGS if CONFIGS[kind][0]['model_type'] in TEXTS]
)
def test_a_text_is_embedded_as_one_row(kind):
  made, inputs = model(kind), tokens(3, 9)
  shapes = jax.eval_shape(made.backbone.init, jax.random.key(0))
  found = jax.eval_shape(made.backbone.embed, shapes, inputs)
  assert found.ndim == 3 and found.shape[0] == 3


def test_scales_of_one_value_stay_as_they_are_in_half_precision():
  made = model('siglip', storage='bfloat16', dtype='bfloat16')
  shapes = jax.eval_shape(made.backbone.init, jax.random.key(0))['final']
  assert str(shapes['logit_scale'].dtype) == 'float32'
  assert str(shapes['logit_bias'].dtype) == 'float32'


def test_a_projected_tower_has_the_width_of_its_embedding():
  made = pretrained.model(
    CONFIGS['clip_vision_model'][0] | {'projection_dim': 20},
    Options(classes=3, pooling='projected'),
  )
  assert made.backbone.width == 20
  assert model('clip_vision_model').backbone.width == 32
