"""The features of the classes of zero_shot: those of texts about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from fedms_jax.data import quality
from fedms_jax.models import class_prompts, pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import model_files
from fedms_jax.persistence.model_files import Checkpoint
from fedms_jax.shell import side_files
from fedms_jax.shell.config import ModelConfig


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
