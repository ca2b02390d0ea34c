"""The text tower under a soft prompt is the text tower under words."""

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.models import class_prompts, pretrained
from tests.algorithms import clip_world
from tests.algorithms.clip_world import END, START, TOKENS

WORDS = np.array([11, 12, 13], np.int32)


def test_words_as_a_prompt_give_the_features_of_the_whole_text():
  """Names of different lengths, so that their ends lie apart."""
  text = clip_world.start().frozen['base']['text']
  whole = [
    [START, *WORDS, *(t for t in row[1:] if t >= 0)] for row in TOKENS.tolist()
  ]
  most = max(map(len, whole))
  whole = np.array([row + [-1] * (most - len(row)) for row in whole], np.int32)
  assert (whole[:, -1] == END).sum() == 1
  backbone = clip_world.text_model().backbone
  encode = jax.jit(lambda p, x: pretrained.encode(backbone, p, x))
  expected = class_prompts.class_features(encode(text, whole), len(TOKENS))

  context = text['stem']['word'][WORDS]
  features = jax.jit(clip_world.model().prompted.features)
  found = features(text, context)
  np.testing.assert_allclose(found, expected, atol=2e-6)
  turned = features(text, context[::-1])
  assert np.abs(turned - expected).max() > 1e-3  # the order of words counts


def test_every_vector_of_a_prompt_has_a_slope():
  text = clip_world.start().frozen['base']['text']
  features = clip_world.model().prompted.features
  towards = jnp.arange(8.0)
  slope = jax.grad(lambda x: jnp.sum(features(text, x) @ towards))
  found = jax.jit(slope)(jnp.zeros((4, clip_world.WIDTH)))
  assert (np.abs(found).max(axis=1) > 1e-4).all()


def test_what_a_prompt_must_fit_into_is_told():
  prompted = clip_world.model().prompted
  assert (prompted.width, prompted.room) == (12, 12)
  assert clip_world.text_model().prompted is None
