"""CLIP: both towers, class prompts and the contrast, against the reference."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fedms_jax.models import class_prompts, clip, pretrained
from fedms_jax.models.family import Options
from fedms_jax.models.settings import Settings
from fedms_jax.persistence import model_files
from tests.models import references
from tests.models.references import close

END = 59


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """(torch model, its checkpoint)."""
  theirs = references.build(references.CLIP)
  folder = tmp_path_factory.mktemp('clip')
  return theirs, references.reopen(theirs, folder)


def captions(rows: int = 3):
  """Sequences with the end token, then padding."""
  out = references.tokens(rows)
  last = (out >= 0).sum(axis=1) - 1
  out[np.arange(rows), last] = END
  return out


def compare(theirs, inputs):
  """What the reference says of images and captions."""
  import torch

  mean, std = clip.MEAN, clip.STD
  pixels = references.pixels(inputs['image'], mean, std)
  with torch.no_grad():
    return theirs(
      pixel_values=pixels,
      **references.torch_tokens(inputs['text'], padding=END),
      output_hidden_states=True,
    )


def load(checkpoint, **kwargs):
  options = Options(**kwargs)
  model = pretrained.model(checkpoint.config, options)
  return model.backbone, model_files.load(model, checkpoint)[0]


def pairs():
  return {'image': references.images(3), 'text': captions()}


@pytest.mark.parametrize('tower', ['image', 'text'])
def test_every_block_of_a_tower_equals_the_reference(reference, tower):
  theirs, checkpoint = reference
  inputs = pairs()
  out = compare(theirs, inputs)
  parts = {'image': out.vision_model_output, 'text': out.text_model_output}
  backbone, params = load(checkpoint, classes=3, tower=tower)
  head = backbone.init_head(jax.random.key(0))
  states, features, _ = references.walk(backbone, params, head, inputs[tower])
  mask = backbone.mask(inputs[tower])
  for ours, expected in zip(states, parts[tower].hidden_states, strict=True):
    close(ours, expected, mask)
  expected = out.image_embeds if tower == 'image' else out.text_embeds
  length = np.linalg.norm(features, axis=-1, keepdims=True)
  close(features / length, expected)


@pytest.mark.parametrize('tower', ['image', 'text', 'both'])
def test_contrast_equals_the_reference_whatever_adapts(reference, tower):
  theirs, checkpoint = reference
  inputs = pairs()
  out = compare(theirs, inputs)
  backbone, params = load(checkpoint, head='contrast', tower=tower)
  _, features, logits = references.walk(backbone, params, {}, inputs)
  assert features.shape == (3, 2 * 20) == (3, backbone.width)
  close(logits, out.logits_per_image)


def test_a_contrast_pairs_blocks_from_the_output_down(reference):
  _, checkpoint = reference
  backbone, params = load(checkpoint, head='contrast', tower='both')
  _, image = load(checkpoint, classes=3)
  assert backbone.blocks == 2
  kernel = image['blocks']['attn']['q']['kernel']
  joint = params['blocks']['image']['attn']['q']['kernel']
  below = params['stem']['image']['blocks']['attn']['q']['kernel']
  np.testing.assert_array_equal(kernel[1:], joint)
  np.testing.assert_array_equal(kernel[:1], below)


def test_class_prompts_are_the_head_of_zero_shot(reference):
  theirs, checkpoint = reference
  inputs = pairs()
  out = compare(theirs, inputs)
  text, text_params = load(checkpoint, classes=1, tower='text')
  prompts = pretrained.encode(text, text_params, inputs['text'])
  classes = class_prompts.class_features(prompts, 3)
  model = pretrained.model(
    checkpoint.config, Options(head='zero_shot', classes=3)
  )
  with pytest.raises(ValueError, match='final/classes'):
    model_files.load(model, checkpoint)
  params, _ = model_files.load(
    model, checkpoint, given={'final/classes': classes}
  )
  _, _, logits = references.walk(model.backbone, params, {}, inputs['image'])
  close(logits, out.logits_per_image)


def test_an_ensemble_is_the_normalised_mean_of_normalised_prompts():
  features = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
  features *= np.arange(1, 7)[:, None]  # lengths must not weigh
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  mean = unit.reshape(2, 3, 5).mean(axis=1)
  expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
  ours = class_prompts.class_features(features, 2)
  np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_prompts_come_class_by_class():
  found = class_prompts.class_prompts(['a {}', 'one {}'], ['cat', 'dog'])
  assert found == ['a cat', 'one cat', 'a dog', 'one dog']


def test_names_of_classes_have_spaces_in_prompts():
  found = class_prompts.class_prompts(['a {}.'], ['apple_pie', 'a{b}'])
  assert found == ['a apple pie.', 'a a{b}.']


@pytest.mark.parametrize(
  'template', ['a photo', '', 'a {kind} of {}', 'a {0}', '{} {}', 'a {', '{!r}']
)
def test_a_template_has_one_place_and_no_other(template):
  with pytest.raises(ValueError, match='`templates`'):
    class_prompts.class_prompts(['a {}', template], ['cat'])


def test_the_end_of_a_text_follows_both_rules_of_the_reference():
  config = references.CLIP_PARTS['text_config']
  tokens = np.array([[3, 57, 4, END, 5, 57]], np.int32)

  def length(end):
    tower = clip.text_tower(
      Settings(config | {'eos_token_id': end}), Options(), 4
    )
    return int(np.asarray(tower.mask(tokens)).sum())

  assert length(57) == 2  # the first end token
  assert length(2) == 4  # an old config: the greatest token


def test_towers_and_heads_that_do_not_fit_are_refused():
  config = {'model_type': 'clip', **references.CLIP_PARTS}
  for options in (
    Options(head='causal_lm'),
    Options(head='zero_shot', tower='text'),
    Options(tower='both', classes=2),
  ):
    with pytest.raises(ValueError, match='allowed'):
      pretrained.model(config, options)


@pytest.mark.slow
def test_parity_holds_at_the_shape_of_vit_b_16(tmp_path):
  config = {'vision_config': {'patch_size': 16}, 'text_config': {}}
  case = references.CLIP._replace(config=config)
  theirs = references.build(case, spread=0.005)
  checkpoint = references.reopen(theirs, tmp_path)
  tokens = references.tokens(2, 16, vocabulary=20000)
  tokens[:, 12] = 49407
  inputs = {'image': references.images(2, 224), 'text': tokens}
  out = compare(theirs, inputs)
  backbone, params = load(checkpoint, head='contrast', tower='both')
  _, _, logits = references.walk(backbone, params, {}, inputs)
  close(logits, out.logits_per_image)
  for tower, part in (
    ('image', out.vision_model_output),
    ('text', out.text_model_output),
  ):
    backbone, params = load(checkpoint, classes=3, tower=tower)
    head = backbone.init_head(jax.random.key(0))
    states, *_ = references.walk(backbone, params, head, inputs[tower])
    mask = backbone.mask(inputs[tower])
    for ours, expected in zip(states, part.hidden_states, strict=True):
      close(ours, expected, mask)
