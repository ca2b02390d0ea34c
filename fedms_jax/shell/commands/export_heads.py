"""Heads that no class of transformers has, beside what is exported."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from fedms_jax.core.types import Tree
from fedms_jax.models import class_prompts
from fedms_jax.models.family import Model
from fedms_jax.persistence import peft

FILE = 'head.safetensors'


def compares(model: Model) -> bool:
  """Whether the model compares texts with class features that it cannot make
  again: they are of its encoder before it was adapted."""
  final = jax.eval_shape(model.backbone.init, jax.random.key(0))['final']
  return 'classes' in final and not model.reference


def with_classes(model: Model, parts: Tree, base: Callable[[], Tree]) -> Tree:
  """The parts, with class features as the kernel of a head. base: gives the
  base model, if the parts have none."""
  if not compares(model):
    return parts
  final = (parts.get('base') or base())['final']
  kernel = class_prompts.SCALE * np.asarray(final['classes'], np.float32).T
  return parts | {'head': {'kernel': kernel}}


def beside(
  model: Model, head: Tree, labels: Sequence[str], out: str, so: str
) -> None:
  """Writes a head to the folder `out`, and says how it is used. so: what the
  feature comes from."""
  leaves = {'weight': np.asarray(head['kernel']).T}
  leaves |= {k: np.asarray(v) for k, v in head.items() if k == 'bias'}
  peft.write_tensors(pathlib.Path(out) / FILE, leaves, labels)
  feature = 'this feature'
  if compares(model):
    feature = 'this feature divided by its length'
  print(
    f'wrote the head to {FILE}: no class of transformers has a linear layer '
    f'on {feature}, so {so}'
  )
