"""Classes as texts, and the texts of a class as one feature."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax.numpy as jnp

from fedms_jax.models import contrast


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
