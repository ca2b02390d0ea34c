"""FedCLIP (arXiv 2302.13485): an attention adapter on the feature of an image.

The model is frozen. A feature x is multiplied, entry by entry, by softmax(W2
tanh(W1 x + b1) + b2), and compared with the zero-shot features of the classes;
W and b alone are trained and averaged. The paper's loss contrasts the images
of a batch with the texts of their labels; ours is that of all methods here,
the cross-entropy over all classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import frozen_backbone
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Batch, Tree
from fedms_jax.models import linear


def fedclip(setting: Setting) -> Algorithm:
  """FedCLIP of a backbone with class prompts."""
  width = setting.backbone.width

  def fresh(key, frozen: Tree) -> Tree:
    del frozen
    first, second = jax.random.split(key)
    layers = {
      'first': linear.init(first, width, width),
      'second': linear.init(second, width, width),
    }
    return {'adapter': layers}

  def logits(frozen: Tree, parts: Tree, batch: Batch):
    x = batch['features']
    x = attention(parts['adapter'], x) * x
    classes = frozen['base']['final']['classes']
    return frozen_backbone.class_logits(setting, frozen, classes, x)

  form = frozen_backbone.on_features(setting, fresh, logits)
  return frozen_backbone.averaged(setting, form, 'fedclip')


def attention(adapter: Tree, x):
  """Weights [B, P] of the entries of features [B, P]; they sum to 1."""
  hidden = jnp.tanh(linear.apply(adapter['first'], x))
  return jax.nn.softmax(linear.apply(adapter['second'], hidden), axis=-1)
