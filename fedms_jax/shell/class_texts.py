"""The features of the classes of zero_shot: those of texts about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from fedms_jax.data import quality
from fedms_jax.models import class_prompts, pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import json_files, model_files
from fedms_jax.persistence.model_files import Checkpoint
from fedms_jax.shell import side_files
from fedms_jax.shell.config import ModelConfig

# Where sentence-transformers says what is made of the tokens, by a flag for
# each way or by `pooling_mode`, and which of its flags are ways of ours.
_POOLING = '1_Pooling/config.json'
_MODES = {
  'pooling_mode_mean_tokens': 'mean',
  'pooling_mode_cls_token': 'cls',
}


def features(
  m: ModelConfig,
  names: Sequence[str],
  checkpoint: Checkpoint,
  encode_text: Callable[[list[str]], dict[str, np.ndarray]],
  *,
  texts: bool,
) -> np.ndarray:
  """The features [C, P] of the classes, by the model as its files have it.

  texts: what is classified is texts, by the encoder that reads the class
  prompts, too; else images, and its text tower reads them.
  """
  usual = class_prompts.IMAGE_TEMPLATE
  pooling = ''
  if texts:
    usual = class_prompts.TEXT_TEMPLATE
    pooling = class_prompts.pooling(Options(pooling=m.pooling))
    if not m.pooling:
      _check_pooling(checkpoint, pooling)
  templates = (m.templates or usual).split('|')
  prompts = class_prompts.class_prompts(templates, names)
  quality.check_prompts(names, np.reshape(prompts, (len(names), -1)).tolist())
  tokens = encode_text(prompts)['inputs']
  options = Options(
    head='classification',
    tower='text',
    pooling=pooling,
    padding=side_files.padding(checkpoint),
  )
  tower = pretrained.model(checkpoint.config, options, checkpoint.preprocessor)
  params, _ = model_files.load(tower, checkpoint)
  encode = jax.jit(lambda p, x: pretrained.encode(tower.backbone, p, x))
  return np.asarray(
    class_prompts.class_features(encode(params, tokens), classes=len(names))
  )


def _check_pooling(checkpoint: Checkpoint, usual: str) -> None:
  """Raises `ValueError` if the encoder's files say that its sentences are
  another feature than the usual one, which nobody has asked for."""
  path = checkpoint.folder / _POOLING
  said = json_files.read(path)
  found = {
    _MODES.get(key, key)
    for key, value in said.items()
    if key.startswith('pooling_mode_') and value is True
  }
  if mode := said.get('pooling_mode'):
    found = {str(mode)}
  if found and found != {usual}:
    raise ValueError(
      f'{path} says that the feature of a sentence is '
      f'{" and ".join(sorted(found))}, and --model.pooling is empty, which is '
      f'{usual}; allowed: {", ".join(class_prompts.POOLINGS)}. Choose one.'
    )
