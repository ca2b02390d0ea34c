"""The head of a model in the files of PEFT: a module that is saved."""

from __future__ import annotations

import jax
import numpy as np

from fedms_jax.core.types import Tree
from fedms_jax.models import renaming
from fedms_jax.models.family import Model
from fedms_jax.persistence.peft_names import ROOT, source


def written(model: Model, head: Tree) -> tuple[str, dict[str, np.ndarray]]:
  """The module of the head, and its leaves as torch keeps them."""
  module = source(model, 'head/kernel').tensor.removesuffix('.weight')
  leaves = {'weight': np.asarray(head['kernel']).T}
  if 'bias' in head:
    leaves['bias'] = np.asarray(head['bias'])
  return module, leaves


def taken(model: Model, tensors: dict[str, np.ndarray]) -> Tree | None:
  """Takes the head out of the tensors."""
  name = renaming.source(model, 'head/kernel')
  key = ROOT + (name.tensor if name else '')
  if key not in tensors:
    return None
  head = {'kernel': tensors.pop(key).T}
  bias = key.removesuffix('.weight') + '.bias'
  if bias in tensors:
    head['bias'] = tensors.pop(bias)
  return head


def check(model: Model, head: Tree, where: str) -> None:
  """Raises `ValueError` if the head was trained on another feature, or there
  is none."""
  wanted = jax.eval_shape(model.backbone.init_head, jax.random.key(0))
  if not wanted or not model.reference:
    raise ValueError(
      f"{where} has a head, which was trained on the feature of this family's "
      'own classifier. Choose it: `Options.head`=classification, and '
      '`Options.pooling`.'
    )
  shapes = {key: x.shape for key, x in head.items()}
  if shapes != {key: x.shape for key, x in wanted.items()}:
    raise ValueError(
      f'{where} has a head of shape {head["kernel"].shape}; this run needs '
      f'{wanted["kernel"].shape}, D x classes.'
    )
