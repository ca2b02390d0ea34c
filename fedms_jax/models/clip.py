"""CLIP (arXiv 2103.00020): an image tower, a text tower, and their contrast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedms_jax.core import activation
from fedms_jax.core.types import Tree
from fedms_jax.models import (
  contrast,
  costs,
  family,
  sequences,
  transformer,
  vit,
)
from fedms_jax.models.beside import Beside, last
from fedms_jax.models.class_prompts import class_prompts as class_prompts
from fedms_jax.models.contrast import Similarity, Tower
from fedms_jax.models.family import Head, Model, Name, Options, Prompted, Words
from fedms_jax.models.settings import Settings
from fedms_jax.models.transformer import TransformerConfig

HEADS = ('classification', 'zero_shot', 'contrast')
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def _shape(config: Settings, options: Options, **usual) -> TransformerConfig:
  config.refuse(model_type=usual['kind'])
  config.integer('projection_dim', 512)  # CLIP's own holds
  sizes = {
    'width': 'hidden_size',
    'heads': 'num_attention_heads',
    'mlp_width': 'intermediate_size',
  }
  fields = {k: config.integer(name, usual[k]) for k, name in sizes.items()}
  return family.shape(
    options,
    activation=config.choice('hidden_act', 'quick_gelu', family.ACTIVATIONS),
    blocks=config.blocks('num_hidden_layers', 12),
    norm_eps=config.number('layer_norm_eps', 1e-5),
    causal=usual.get('causal', False),
    **fields,
  )


def _final(t: TransformerConfig, projected: int) -> Callable[[Any], Tree]:
  """projected: width of the embedding, 0 for a tower without a projection."""

  def final(key) -> Tree:
    out = {'norm': family.norm(t)}
    if projected:
      out['projection'] = family.table(key, t.width, projected)
    return out

  return final


def _project(t: TransformerConfig, final: Tree, x):
  x = transformer.normalize(t, final['norm'], x, 'float32')
  if 'projection' not in final:
    return x
  return x @ final['projection'].astype(jnp.float32)


def image_tower(config: Settings, options: Options, projected: int) -> Tower:
  """The tower of uint8 images, of the vision_config of a config.json."""
  t = _shape(
    config, options, kind='clip_vision_model', width=768, heads=12,
    mlp_width=3072,
  )  # fmt: skip
  channels = config.integer('num_channels', 3)
  patch, cells = vit.cells(config, 32)
  mean, std = family.pixels(options, channels, MEAN, STD)

  def stem(keys) -> Tree:
    return {
      'kernel': family.table(keys[0], patch, patch, channels, t.width),
      'position': family.table(keys[1], cells + 1, t.width),
      'cls': family.table(keys[2], t.width),
      'norm': family.norm(t),
    }

  def embed(stem, images):
    kernel = stem['kernel'].astype(t.dtype)
    x = vit.embed_patches(kernel, images, mean, std)
    cls = jnp.broadcast_to(stem['cls'].astype(x.dtype), (len(x), 1, t.width))
    x = (
      jnp.concatenate([cls, x], axis=1) + stem['position'].astype(x.dtype)[None]
    )
    return transformer.normalize(t, stem['norm'], x)

  return Tower(
    t,
    tokens=cells + 1,
    stem_flops=2.0 * cells * patch**2 * channels * t.width,
    stem=stem,
    final=_final(t, projected),
    embed=embed,
    mask=lambda images: None,
    feature=lambda final, x, mask: _project(t, final, x[:, 0]),
    names=_IMAGE_NAMES | block_names('vision_model'),
    reads=1,
  )


_IMAGE_NAMES = {
  'stem/kernel': Name(
    'vision_model.embeddings.patch_embedding.weight', (2, 3, 1, 0)
  ),
  'stem/position': Name('vision_model.embeddings.position_embedding.weight'),
  'stem/cls': Name('vision_model.embeddings.class_embedding'),
  'stem/norm': Name('vision_model.pre_layrnorm'),
  'final/norm': Name('vision_model.post_layernorm'),
  'final/projection': Name('visual_projection.weight', (1, 0)),
}


def words(config: Settings) -> Words:
  """What the text tower takes."""
  return text_words(config.part('text_config'))


def text_words(config: Settings) -> Words:
  """What a text tower takes, of its own config."""
  return Words(
    config.integer('max_position_embeddings', 77),
    config.integer('vocab_size', 49408),
  )


def text_tower(config: Settings, options: Options, projected: int) -> Tower:
  """The tower of tokens [B, T], of the text_config of a config.json.

  The feature is that of the end token, and the mask ends there.
  """
  t = _shape(
    config,
    options,
    kind='clip_text_model',
    width=512,
    heads=8,
    mlp_width=2048,
    causal=True,
  )
  positions, vocabulary = text_words(config)
  end = config.integer('eos_token_id', 49407, low=0)

  def stem(keys) -> Tree:
    return {
      'word': family.table(keys[0], vocabulary, t.width),
      'position': family.table(keys[1], positions, t.width),
    }

  def embed(stem, tokens):
    x = stem['word'][jnp.maximum(tokens, 0)].astype(t.dtype)
    return x + stem['position'][: tokens.shape[1]].astype(t.dtype)[None]

  def mask(tokens):
    # Old configs say 2, which is wrong; the end is then the greatest token.
    found = tokens if end == 2 else tokens == end
    place = jnp.argmax(found, axis=1)
    return jnp.arange(tokens.shape[1])[None] <= place[:, None]

  return Tower(
    t,
    tokens=positions,
    stem_flops=0.0,
    stem=stem,
    final=_final(t, projected),
    embed=embed,
    mask=mask,
    feature=lambda final, x, mask: _project(t, final, sequences.last(x, mask)),
    names={
      'stem/word': Name('text_model.embeddings.token_embedding.weight'),
      'stem/position': Name('text_model.embeddings.position_embedding.weight'),
      'final/norm': Name('text_model.final_layer_norm'),
      'final/projection': Name('text_projection.weight', (1, 0)),
      **block_names('text_model'),
    },
  )


def block_names(root: str) -> dict[str, Name]:
  block = f'{root}.encoder.layers.{{}}'
  return {
    'blocks/norm1': Name(f'{block}.layer_norm1'),
    'blocks/attn/q': Name(f'{block}.self_attn.q_proj'),
    'blocks/attn/k': Name(f'{block}.self_attn.k_proj'),
    'blocks/attn/v': Name(f'{block}.self_attn.v_proj'),
    'blocks/attn/o': Name(f'{block}.self_attn.out_proj'),
    'blocks/norm2': Name(f'{block}.layer_norm2'),
    'blocks/mlp/up': Name(f'{block}.mlp.fc1'),
    'blocks/mlp/down': Name(f'{block}.mlp.fc2'),
  }


def model(config: Settings, options: Options) -> Model:
  """A CLIP of config.json.

  classification: a linear head over the embedding of one tower. zero_shot:
  the head is the embeddings of class prompts, `params['final']['classes']`
  [C, P], normalised (see `class_features`). contrast: see `contrast.model`.
  """
  head = family.choose('`Options.head`', options.head, HEADS)
  projected = config.integer('projection_dim', 512)
  config.flag('tie_word_embeddings', True)  # there are none
  parts = {}
  for name, make, key in (
    ('image', image_tower, 'vision_config'),
    ('text', text_tower, 'text_config'),
  ):
    parts[name] = make(config.part(key), options, projected)
  family.length(options, parts['text'].tokens)
  if head == 'contrast':
    made = contrast.model(parts, options, projected)
    return made._replace(reference='CLIPModel', unread=config.unread())
  allowed = ('image',) if head == 'zero_shot' else ('image', 'text')
  name = family.choose('`Options.tower`', options.tower, allowed)
  made = single(parts[name], name, options, projected)
  if head == 'zero_shot':
    made = made._replace(
      prompted=prompted(parts['text'], parts['image']),
      reference='CLIPModel',
    )
  return made._replace(unread=config.unread())


# Whose output is the embedding; by whether it is that of texts.
_EMBEDDING = {
  False: 'CLIPVisionModelWithProjection',
  True: 'CLIPTextModelWithProjection',
}


def tower(config: Settings, options: Options) -> Model:
  """A tower with files of its own: the linear head is over its pooled feature
  or, with the pooling 'projected', over its embedding."""
  family.choose('`Options.head`', options.head, ('classification',))
  pooling = family.choose(
    '`Options.pooling`', options.pooling, ('pooler', 'projected')
  )
  text = config.text('model_type', '') == 'clip_text_model'
  projected = config.integer('projection_dim', 512)
  make = text_tower if text else image_tower
  found = make(config, options, projected if pooling == 'projected' else 0)
  if text:
    family.length(options, found.tokens)
  width = projected if pooling == 'projected' else found.transformer.width
  made = single(found, 'text' if text else 'image', options, width)
  return made._replace(
    prefix='text_model.' if text else 'vision_model.',
    ignored=('.*position_ids', '(text|visual)_projection.weight'),
    featured='AutoModel' if pooling == 'pooler' else _EMBEDDING[text],
    unread=config.unread(),
  )


def single(
  tower: Tower,
  name: str,
  options: Options,
  projected: int,
  similarity: Similarity = contrast.COSINE,
) -> Model:
  """One tower, with class prompts or a linear layer as its head."""
  zero_shot = options.head == 'zero_shot'

  def final(key) -> Tree:
    out = tower.final(key)
    if zero_shot:
      key = jax.random.fold_in(key, 1)
      out['classes'] = family.table(key, options.classes, projected)
      out |= similarity.init()
    return out

  def logits(params, head, x):
    classes = params['final']['classes'].astype(jnp.float32)
    return similarity.logits(params['final'], contrast.unit(x), classes)

  head = family.linear_head(projected, options.classes)
  if zero_shot:
    head = Head(lambda key: {}, logits, head.flops)
  text = name == 'text'
  other = 'vision_model|visual_projection' if text else 'text_model|text_proj'
  return Model(
    family.backbone(
      tower.transformer,
      storage=options.storage,
      stem=tower.stem,
      final=final,
      embed=lambda params, inputs: tower.embed(params['stem'], inputs),
      features=lambda params, x, m: tower.feature(params['final'], x, m),
      head=head,
      tokens=text and options.tokens or tower.tokens,
      stem_flops=tower.stem_flops,
      mask=tower.mask,
      masked=False,
      width=projected,
      reads=tower.reads,
    ),
    tower.names | contrast.SCALE_NAMES,
    ignored=(rf'({other}).*', 'logit_scale', r'.*position_ids'),
  )


def prompted(tower: Tower, images: Tower) -> Prompted:
  """The text tower on [start] context [class name] [end] (CoOp, arXiv
  2109.01134), the context the same for all classes."""
  t = tower.transformer

  def features(text: Tree, context, beside: Beside | None = None):
    tokens, stem = text['tokens'], text['stem']
    words = stem['word'][jnp.maximum(tokens, 0)].astype(t.dtype)
    context = jnp.broadcast_to(
      context.astype(t.dtype), (len(tokens), *context.shape)
    )
    x = jnp.concatenate([words[:, :1], context, words[:, 1:]], axis=1)
    x = x + stem['position'][: x.shape[1]].astype(t.dtype)[None]
    held = tower.mask(tokens)
    ours = jnp.ones(context.shape[:2], bool)
    held = jnp.concatenate([held[:, :1], ours, held[:, 1:]], axis=1)
    plain = t.blocks - (beside.count if beside else 0)
    # Causal: padding is never seen.
    x = transformer.run(t, activation.prefix(text['blocks'], None, plain), x)
    if beside:
      run = functools.partial(transformer.run, t)
      x = last(text['blocks'], t.blocks, beside, run, x)
    return contrast.unit(tower.feature(text['final'], x, held))

  def flops(text: Tree, context: int) -> float:
    classes, length = text['tokens'].shape
    cost = costs.transformer(t, context + length, 0.0, 0.0)
    return classes * t.blocks * cost.block

  def patches(params: Tree, x):
    # The feature is that of the first token; here each is the only one.
    tokens = x[:, 1:].reshape(-1, 1, x.shape[-1])
    found = images.feature(params['final'], tokens, None)
    return contrast.unit(found).reshape(len(x), -1, found.shape[-1])

  return Prompted(t.blocks, t.width, tower.tokens, features, flops, patches)
