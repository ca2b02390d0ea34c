"""The families of models that load from Hugging Face files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from fedms_jax.core.types import Backbone, Span, Tree
from fedms_jax.models import (
  bert,
  clip,
  dinov2,
  distilbert,
  gemma,
  gpt2,
  llama,
  mistral,
  phi,
  preprocessors,
  qwen,
  siglip,
  vit,
)
from fedms_jax.models.family import Model, Options, Words
from fedms_jax.models.settings import Settings

FAMILIES: dict[str, Callable[[Settings, Options], Model]] = {
  'clip': clip.model,
  'clip_vision_model': clip.tower,
  'clip_text_model': clip.tower,
  'siglip': siglip.model,
  'siglip_vision_model': siglip.tower,
  'siglip_text_model': siglip.tower,
  'vit': vit.model,
  'deit': vit.model,
  'dinov2': dinov2.model,
  'dinov2_with_registers': dinov2.model,
  'bert': bert.model,
  'roberta': bert.model,
  'xlm-roberta': bert.model,
  'distilbert': distilbert.model,
  'gpt2': gpt2.model,
  'llama': llama.model,
  'mistral': mistral.model,
  'gemma2': gemma.model,
  'gemma3_text': gemma.third,
  'phi3': phi.model,
  'qwen2': qwen.model,
  'qwen3': qwen.third,
}
# Are near to families by name, and compute something else.
OTHERS = {
  'modernbert': 'has a first block without the norm that the others have, and '
  'attends to near tokens only in most of them',
  'siglip2': 'reads images of any shape as patches and a mask',
}
WORDS: dict[str, Callable[[Settings], Words]] = {
  'clip': clip.words,
  'clip_text_model': clip.text_words,
  'siglip': siglip.words,
  'siglip_text_model': siglip.text_words,
  'bert': bert.words,
  'roberta': bert.words,
  'xlm-roberta': bert.words,
  'distilbert': distilbert.words,
  'gpt2': gpt2.words,
  'llama': llama.words,
  'mistral': functools.partial(llama.words, usual=mistral.USUAL),
  'gemma2': functools.partial(llama.words, usual=gemma.GEMMA2),
  'gemma3_text': functools.partial(llama.words, usual=gemma.GEMMA3),
  'phi3': functools.partial(llama.words, usual=phi.USUAL),
  'qwen2': functools.partial(llama.words, usual=qwen.QWEN2),
  'qwen3': functools.partial(llama.words, usual=qwen.QWEN3),
}
# Which part of config.json has the size of the images; '' for the whole.
IMAGES = {
  'clip': 'vision_config',
  'clip_vision_model': '',
  'siglip': 'vision_config',
  'siglip_vision_model': '',
  'vit': '',
  'deit': '',
  'dinov2': '',
  'dinov2_with_registers': '',
}
# Read the tokens that fill up a text.
FILLED = ('siglip', 'siglip_text_model')
# Take images of other sizes than that of config.json.
RESIZED = ('dinov2', 'dinov2_with_registers')


def family_of(config: dict) -> str:
  """The family of a config.json; `ValueError` if it is none of ours."""
  kind = config.get('model_type', '')
  if kind in OTHERS:
    raise ValueError(
      f'config.json has model_type={kind!r}, which {OTHERS[kind]}; that is not '
      f'built. Families: {", ".join(FAMILIES)}.'
    )
  if not isinstance(kind, str) or kind not in FAMILIES:
    # No hint at a near name: under it, the model would give other numbers.
    raise ValueError(
      f'config.json has model_type={kind!r}, which is no family that can be '
      f'loaded. Families: {", ".join(FAMILIES)}.'
    )
  return kind


def model(
  config: dict, options: Options, preprocessor: dict | None = None
) -> Model:
  """The model of a config.json; nothing is allocated.

  preprocessor: preprocessor_config.json, whose image_mean, image_std and size
  hold where `options` has none.
  """
  kind = family_of(config)
  for name in ('image_mean', 'image_std'):
    found = tuple((preprocessor or {}).get(name) or ())
    if found and not getattr(options, name):
      options = dataclasses.replace(options, **{name: found})
  if preprocessor and kind in RESIZED and not options.image_side:
    side = preprocessors.side(preprocessor) or 0
    options = dataclasses.replace(options, image_side=side)
  return FAMILIES[kind](Settings(config), options)


def words(config: dict) -> Words:
  """What the text model, or text tower, of a config.json takes."""
  return WORDS[config['model_type']](Settings(config))


def image_side(config: dict, preprocessor: dict | None = None) -> int:
  """The side of the images that the model, or image tower, takes.

  preprocessor: holds for models that interpolate their positions.
  """
  if preprocessor and config['model_type'] in RESIZED:
    if side := preprocessors.side(preprocessor):
      return side
  settings = Settings(config)
  if part := IMAGES[config['model_type']]:
    settings = settings.part(part)
  return settings.side('image_size', 224)


def encode(backbone: Backbone, params: Tree, inputs):
  """Features of inputs by the model as it was loaded, without LoRA."""
  mask = backbone.mask(inputs)
  spans = [Span(0, backbone.blocks, (params['blocks'], None))]
  x = backbone.embed(params, inputs)
  return backbone.featured(params, spans, x, mask)
