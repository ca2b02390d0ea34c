"""Classes as texts, and the texts of a class as one feature.

CLIP compares these features with images (`clip.single`). An encoder of texts
compares its own feature of a text with them, as sentence encoders compare
texts (arXiv 1908.10084); that they make a head is as in CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedms_jax.models import contrast, family
from fedms_jax.models.family import Head, Options

# Features that sentence encoders are trained with. Without a word of the user
# it is the mean, which sentence-transformers puts on a plain checkpoint.
POOLINGS = ('mean', 'cls')
# What cosines are multiplied with where no file says it: the scale of
# sentence-transformers' MultipleNegativesRankingLoss, with which all-MiniLM and
# its kin were trained.
SCALE = 20.0
# Of texts: that of SetFit's zero-shot classification.
TEXT_TEMPLATE = 'This sentence is {}'
IMAGE_TEMPLATE = 'a photo of a {}.'
_LEAST = 1e-12  # of a squared length: a text without tokens has the feature 0


def class_prompts(
  templates: Sequence[str], classes: Sequence[str]
) -> list[str]:
  """One text for each class and template, [C * n], class by class."""
  for template in templates:
    before, place, after = template.partition('{}')
    if not place or re.search('[{}]', before + after):
      raise ValueError(
        f'`templates` has {template!r}; allowed: one {{}} where the '
        "class stands, and no other braces, as in 'a photo of a {}.'."
      )
  return [t.replace('{}', spoken(c)) for c in classes for t in templates]


def spoken(name: str) -> str:
  """The name of a class as it stands in a prompt: CLIP's and CoOp's have
  spaces where data sets have underscores."""
  return name.replace('_', ' ')


def class_features(features, classes: int):
  """Class embeddings [C, P] of prompt embeddings [C * n, P]: normalised, then
  averaged over the n templates, then normalised again."""
  by_class = contrast.unit(features).reshape(classes, -1, features.shape[-1])
  return contrast.unit(jnp.mean(by_class, axis=1))


def pooling(options: Options) -> str:
  """The feature of a text that is compared with classes; `ValueError` for one
  that sentence encoders do not have."""
  return family.choose('`Options.pooling`', options.pooling, POOLINGS)


def fresh(key, classes: int, width: int):
  """Class features [C, D] in the place of those that prompts have."""
  return contrast.unit(family.table(key, classes, width))


def text_head(width: int, classes: int) -> Head:
  """No head that trains: logits [B, C] are `SCALE` times the cosines of the
  features [B, D] and `params['final']['classes']` [C, D] of length 1, in
  float32."""

  def logits(params, head, x):
    del head
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.maximum(squared, _LEAST))
    return SCALE * x @ params['final']['classes'].astype(jnp.float32).T

  return Head(lambda key: {}, logits, 2.0 * width * classes)
