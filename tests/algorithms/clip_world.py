"""A small CLIP with class prompts, on the images of `tests.world`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.algorithms import adapted
from fedms_jax.models import class_prompts, pretrained
from fedms_jax.models.family import Options
from tests import folders, world

SIZES = {'intermediate_size': 12, 'num_attention_heads': 2}
START, END = 18, 19
CONFIG = {
  'model_type': 'clip',
  'vision_config': SIZES
  | {
    'num_hidden_layers': world.BLOCKS,
    'hidden_size': 8,
    'image_size': 8,
    'patch_size': 4,
    'num_channels': 1,
  },
  'text_config': SIZES
  | {
    'num_hidden_layers': 2,
    'hidden_size': 12,
    'vocab_size': 20,
    'max_position_embeddings': 12,
    'eos_token_id': END,
  },
  'projection_dim': 8,
}
LENGTH, WIDTH = 3, 12  # of prompts
# Names of the four classes, of one to three words.
TOKENS = np.array(
  [
    [START, 3, END, -1, -1],
    [START, 4, 5, END, -1],
    [START, 6, 7, 8, END],
    [START, 9, END, -1, -1],
  ],
  np.int32,
)
PIXELS = {'image_mean': (0.5,), 'image_std': (0.5,)}


@functools.cache
def model():
  options = Options(head='zero_shot', classes=world.CLASSES, **PIXELS)
  return pretrained.model(CONFIG, options)


@functools.cache
def text_model():
  return pretrained.model(CONFIG, Options(tower='text', classes=1, **PIXELS))


def drawn(backbone, seed):
  rng = np.random.default_rng(seed)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(3 * folders.random(path, x, rng)),
    jax.eval_shape(backbone.init, jax.random.key(0)),
  )


@functools.cache
def start():
  """The roles before a method begins."""
  base, text = drawn(model().backbone, 0), drawn(text_model().backbone, 1)
  classes = class_prompts.class_features(
    base['final']['classes'], world.CLASSES
  )
  final = {'classes': classes, 'logit_scale': jnp.log(jnp.float32(5.0))}
  base |= {'final': base['final'] | final}
  return adapted.start(base | {'text': text | {'tokens': TOKENS}}, {})


def setting():
  """As that of `world`, so that a test may compare both."""
  return world.setting()._replace(model=model().backbone)


def begin(algorithm):
  """The roles at the first round."""
  return jax.jit(algorithm.begin)(jax.random.key(2), start())
