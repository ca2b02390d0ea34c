"""SigLIP (arXiv 2303.15343): an image tower, a text tower, and their contrast,
which is learned pair by pair."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Tree
from fedms_jax.models import clip, contrast, family, linear, transformer, vit
from fedms_jax.models.contrast import Similarity, Tower
from fedms_jax.models.family import Model, Name, Options, Words
from fedms_jax.models.layers import ACTIVATIONS
from fedms_jax.models.settings import Settings
from fedms_jax.models.transformer import TransformerConfig

SIMILARITY = Similarity(scale=10.0, bias=-10.0)  # as training begins
_MEAN = _STD = (0.5, 0.5, 0.5)


def words(config: Settings) -> Words:
  """What the text tower takes."""
  return text_words(config.part('text_config'))


def text_words(config: Settings) -> Words:
  """What a text tower takes, of its own config."""
  return Words(
    config.integer('max_position_embeddings', 64),
    config.integer('vocab_size', 32000),
  )


def _shape(config: Settings, options: Options, kind: str) -> TransformerConfig:
  config.refuse(model_type=kind)
  return family.shape(
    options,
    activation=config.choice(
      'hidden_act', 'gelu_pytorch_tanh', family.ACTIVATIONS
    ),
    blocks=config.blocks('num_hidden_layers', 12),
    width=config.integer('hidden_size', 768),
    heads=config.integer('num_attention_heads', 12),
    mlp_width=config.integer('intermediate_size', 3072),
    norm_eps=config.number('layer_norm_eps', 1e-6),
  )


def image_tower(config: Settings, options: Options) -> tuple[Tower, int]:
  """The tower of uint8 images, and the width of its feature: what a learned
  query reads of all patches, or with the pooling 'mean' their mean."""
  t = _shape(config, options, 'siglip_vision_model')
  pooled = options.pooling != 'mean'
  if pooled:
    config.refuse(vision_use_head=True)
  config.skip('vision_use_head')
  channels = config.integer('num_channels', 3)
  patch, cells = vit.cells(config, 16)
  mean, std = family.pixels(options, channels, _MEAN, _STD)

  def stem(keys) -> Tree:
    return {
      'kernel': family.table(keys[0], patch, patch, channels, t.width),
      'bias': jnp.zeros(t.width),
      'position': family.table(keys[1], cells, t.width),
    }

  def embed(stem, images):
    kernel = stem['kernel'].astype(t.dtype)
    x = vit.embed_patches(kernel, images, mean, std)
    x = x + lead(stem['bias'].astype(x.dtype), x)
    return x + lead(stem['position'].astype(x.dtype), x)

  def final(key) -> Tree:
    out = {'norm': family.norm(t)}
    return out | _pool(t, key) if pooled else out

  def feature(final, x, mask):
    del mask
    x = transformer.normalize(t, final['norm'], x, 'float32')
    return _pooled(t, final, x) if pooled else jnp.mean(x, axis=1)

  return Tower(
    t,
    tokens=cells,
    stem_flops=2.0 * cells * patch**2 * channels * t.width,
    stem=stem,
    final=final,
    embed=embed,
    mask=lambda images: None,
    feature=feature,
    names=_IMAGE_NAMES | clip.block_names('vision_model'),
  ), t.width


_POOL = 'vision_model.head'
_IMAGE_NAMES = {
  'stem/kernel': Name(
    'vision_model.embeddings.patch_embedding.weight', (2, 3, 1, 0)
  ),
  'stem/bias': Name('vision_model.embeddings.patch_embedding.bias'),
  'stem/position': Name('vision_model.embeddings.position_embedding.weight'),
  'final/norm': Name('vision_model.post_layernorm'),
  'final/probe': Name(f'{_POOL}.probe'),
  'final/qkv/kernel': Name(f'{_POOL}.attention.in_proj_weight', (1, 0)),
  'final/qkv/bias': Name(f'{_POOL}.attention.in_proj_bias'),
  'final/out': Name(f'{_POOL}.attention.out_proj'),
  'final/pool_norm': Name(f'{_POOL}.layernorm'),
  'final/up': Name(f'{_POOL}.mlp.fc1'),
  'final/down': Name(f'{_POOL}.mlp.fc2'),
}


def _pool(t: TransformerConfig, key) -> Tree:
  """Fresh parameters of `_pooled`."""
  keys = jax.random.split(key, 5)
  return {
    'probe': family.table(keys[0], 1, 1, t.width),
    'qkv': linear.init(keys[1], t.width, 3 * t.width),
    'out': linear.init(keys[2], t.width, t.width),
    'pool_norm': family.norm(t),
    'up': linear.init(keys[3], t.width, t.mlp_width),
    'down': linear.init(keys[4], t.mlp_width, t.width),
  }


def _pooled(t: TransformerConfig, final: Tree, x):
  """What a learned query reads of tokens [B, T, D], float32 [B, D]: attention
  and an MLP (Set Transformer, arXiv 1810.00825, section 3.2)."""

  def split(kernel_or_bias):
    return jnp.split(kernel_or_bias.astype(jnp.float32), 3, axis=-1)

  kernels, biases = split(final['qkv']['kernel']), split(final['qkv']['bias'])
  probe = final['probe'][0].astype(jnp.float32)
  q, k, v = (
    (y @ kernel + bias).reshape(*y.shape[:-1], t.heads, t.per_head)
    for y, kernel, bias in zip((probe, x, x), kernels, biases, strict=True)
  )
  scores = jnp.einsum('qhd,bthd->bhqt', q * t.per_head**-0.5, k)
  read = jnp.einsum('bhqt,bthd->bqhd', jax.nn.softmax(scores), v)
  y = linear.apply(final['out'], read.reshape(len(x), t.width))
  z = transformer.normalize(t, final['pool_norm'], y, 'float32')
  z = ACTIVATIONS[t.activation](linear.apply(final['up'], z))
  return y + linear.apply(final['down'], z)


def text_tower(config: Settings, options: Options) -> tuple[Tower, int]:
  """The tower of tokens [B, T], and the width of its feature.

  It has no mask: texts are filled up to all of its positions, and what the
  last of them has is the feature.
  """
  t = _shape(config, options, 'siglip_text_model')
  positions, vocabulary = text_words(config)
  projected = config.integer('projection_size', t.width)
  fill = config.integer('pad_token_id', 1, low=0)
  fill = options.padding if options.padding >= 0 else fill
  if fill >= vocabulary:
    raise ValueError(
      f'texts are filled up with the token {fill}, and config.json has '
      f'vocab_size={vocabulary}; allowed: ids below it. Mend pad_token_id.'
    )

  def stem(keys) -> Tree:
    return {
      'word': family.table(keys[0], vocabulary, t.width),
      'position': family.table(keys[1], positions, t.width),
    }

  def embed(stem, tokens):
    free = positions - tokens.shape[1]
    tokens = jnp.pad(tokens, ((0, 0), (0, free)), constant_values=-1)
    x = stem['word'][jnp.where(tokens < 0, fill, tokens)].astype(t.dtype)
    return x + lead(stem['position'].astype(t.dtype), x)

  def final(key) -> Tree:
    projection = linear.init(key, t.width, projected)
    return {'norm': family.norm(t), 'projection': projection}

  def feature(final, x, mask):
    del mask
    x = transformer.normalize(t, final['norm'], x[:, -1], 'float32')
    return linear.apply(final['projection'], x)

  return Tower(
    t,
    tokens=positions,
    stem_flops=0.0,
    stem=stem,
    final=final,
    embed=embed,
    mask=lambda tokens: None,
    feature=feature,
    names=_TEXT_NAMES | clip.block_names('text_model'),
  ), projected


_TEXT_NAMES = {
  'stem/word': Name('text_model.embeddings.token_embedding.weight'),
  'stem/position': Name('text_model.embeddings.position_embedding.weight'),
  'final/norm': Name('text_model.final_layer_norm'),
  'final/projection': Name('text_model.head'),
}


def model(config: Settings, options: Options) -> Model:
  """A SigLIP of config.json; heads as in `clip.model`.

  The pooling 'mean' of a classification by the image tower is that of the
  reference's own classifier.
  """
  head = family.choose('`Options.head`', options.head, clip.HEADS)
  config.flag('tie_word_embeddings', True)  # there are none
  own = head == 'classification' and options.tower == 'image'
  options = _chosen(options, means=own)
  image, width = image_tower(config.part('vision_config'), options)
  text, projected = text_tower(config.part('text_config'), options)
  if width != projected and head != 'classification':
    raise ValueError(
      f'config.json has hidden_size={width} of images and projection_size='
      f'{projected} of texts; allowed: the same. Mend config.json.'
    )
  family.length(options, text.tokens)
  options = dataclasses.replace(options, tokens=0)  # texts are filled up
  if head == 'contrast':
    towers = {'image': image, 'text': text}
    made = contrast.model(towers, options, width, SIMILARITY)
    reference = 'SiglipModel'
  else:
    allowed = ('image',) if head == 'zero_shot' else ('image', 'text')
    name = family.choose('`Options.tower`', options.tower, allowed)
    tower = image if name == 'image' else text
    feature = width if name == 'image' else projected
    made = clip.single(tower, name, options, feature, SIMILARITY)
    plain = 'SiglipForImageClassification' if options.pooling == 'mean' else ''
    reference = 'SiglipModel' if head == 'zero_shot' else plain
  return made._replace(
    names={**made.names, 'head': 'classifier'},
    ignored=(
      r'.*position_ids', r'(vision|text)_model\..*', r'logit_(scale|bias)',
      r'classifier\..*',
    ),
    heads=(r'classifier\..*',),
    reference=reference,
    unread=config.unread(),
    sigmoid=True,
  )  # fmt: skip


def tower(config: Settings, options: Options) -> Model:
  """A tower with files of its own, and a linear head on its feature."""
  family.choose('`Options.head`', options.head, ('classification',))
  text = config.text('model_type', '') == 'siglip_text_model'
  options = _chosen(options, means=not text, own='pooler')
  found, width = (text_tower if text else image_tower)(config, options)
  if text:
    family.length(options, found.tokens)
  options = dataclasses.replace(options, tokens=0)
  made = clip.single(found, 'text' if text else 'image', options, width)
  return made._replace(
    prefix='text_model.' if text else 'vision_model.',
    ignored=(r'.*position_ids', r'(vision_model\.)?head\..*'),
    unread=config.unread(),
  )


def _chosen(options: Options, means: bool, own: str = 'mean') -> Options:
  """With the pooling that is meant. means: whether there is 'mean'. own: see
  `family.pooling`."""
  allowed = ('pooler', 'mean') if means else ('pooler',)
  own = own if means else 'pooler'
  return dataclasses.replace(
    options, pooling=family.pooling(options, allowed, own)
  )
