"""BERT (arXiv 1810.04805), its small kin such as MiniLM, and RoBERTa's layout
(arXiv 1907.11692)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.core.types import Tree
from fedms_jax.models import (
  class_prompts,
  family,
  linear,
  sequences,
  transformer,
)
from fedms_jax.models.family import Model, Name, Options, Words
from fedms_jax.models.layers import ACTIVATIONS
from fedms_jax.models.settings import Settings
from fedms_jax.models.transformer import TransformerConfig

HEADS = ('classification', 'masked_lm', 'zero_shot')
POOLINGS = ('cls', 'mean', 'pooler')
_CLASSES = {'bert': 'Bert', 'roberta': 'Roberta', 'xlm-roberta': 'XLMRoberta'}


def split(inputs):
  """Tokens [B, T] and their types [B, T] from [B, T] (one segment, type 0) or
  from [B, 2, T]."""
  if inputs.ndim == 2:
    return inputs, jnp.zeros_like(inputs)
  return inputs[:, 0], jnp.maximum(inputs[:, 1], 0)


def mask(inputs):
  """True where a token exists; padding is negative."""
  return split(inputs)[0] >= 0


def words(config: Settings) -> Words:
  """What the model takes; RoBERTa's positions start after the id of its
  padding."""
  return Words(
    config.integer('max_position_embeddings', 512) - _offset(config),
    config.integer('vocab_size', 30522),
  )


def _offset(config: Settings) -> int:
  if config.text('model_type', 'bert') == 'bert':
    return 0
  return config.integer('pad_token_id', 1, low=0) + 1


def model(config: Settings, options: Options) -> Model:
  """A BERT or RoBERTa of config.json.

  Features of a classification are the token CLS, the mean of the tokens, or
  the pooler's output: tanh of a linear layer of CLS, which is what the
  reference classifies. zero_shot: the mean or CLS is compared with the features
  of class prompts, `params['final']['classes']`, see
  `class_prompts.text_head`.
  """
  family.choose('`Options.head`', options.head, HEADS)
  config.refuse(position_embedding_type='absolute')
  kind = config.text('model_type', 'bert')
  roberta = kind != 'bert'
  t = _shape(config, options)
  most, vocabulary = words(config)
  offset = _offset(config)
  types = config.integer('type_vocab_size', 2)
  tokens = family.length(options, most)
  tied = config.flag('tie_word_embeddings', True)
  out = outputs(t, options, tokens, vocabulary, tied, _CLASSES[kind])
  root = 'roberta' if roberta else 'bert'
  return Model(
    family.backbone(
      t,
      storage=options.storage,
      stem=functools.partial(_stem, t, vocabulary, most + offset, types),
      final=out.final,
      embed=functools.partial(_embed, t, offset),
      features=out.features,
      head=out.head,
      tokens=tokens,
      mask=mask,
      reads=out.reads,
    ),
    names(root, tied),
    prefix=f'{root}.',
    ignored=(
      r'.*position_ids',
      rf'({root}\.)?pooler\..*',
      r'(cls|classifier|lm_head)\..*',
    ),
    reference=out.reference,
    heads=(r'classifier\..*',),
    tied=_tied(root) if tied else {},
    unread=config.unread(),
  )


def _shape(config: Settings, options: Options) -> TransformerConfig:
  return family.shape(
    options,
    activation=config.choice('hidden_act', 'gelu', family.ACTIVATIONS),
    blocks=config.blocks('num_hidden_layers', 12),
    width=config.integer('hidden_size', 768),
    heads=config.integer('num_attention_heads', 12),
    mlp_width=config.integer('intermediate_size', 3072),
    norm_eps=config.number('layer_norm_eps', 1e-12),
    pre_norm=False,
  )


def _stem(t: TransformerConfig, vocabulary: int, most: int, types: int, keys):
  return {
    'word': family.table(keys[0], vocabulary, t.width),
    'position': family.table(keys[1], most, t.width),
    'type': family.table(keys[2], types, t.width),
    'norm': family.norm(t),
  }


def _embed(t: TransformerConfig, offset: int, params, inputs):
  ids, types = split(inputs)
  real = ids >= 0
  place = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0) + offset
  stem = params['stem']
  rows = (
    stem['word'][jnp.maximum(ids, 0)],
    stem['position'][place],
    stem['type'][types],
  )
  x = sum(row.astype(jnp.float32) for row in rows)
  return transformer.normalize(t, stem['norm'], x)


class Outputs(NamedTuple):
  """What follows the blocks; reference: the class of transformers that gives
  the same logits, '' if none does; reads: see `family.backbone`."""

  final: Callable
  features: Callable
  head: Any
  reference: str
  reads: int | None = None


def outputs(
  t: TransformerConfig,
  options: Options,
  tokens: int,
  vocabulary: int,
  tied: bool,
  name: str,
  activation=jnp.tanh,
) -> Outputs:
  """Those of `Options.head`. name: what the classes of the reference begin
  with. activation: of the pooler."""
  if options.head == 'masked_lm':
    readout = family.readout(t, tokens, vocabulary)
    return Outputs(*masked(t, vocabulary, tied), readout, f'{name}ForMaskedLM')
  if options.head == 'zero_shot':
    head = class_prompts.text_head(t.width, options.classes)
    return Outputs(
      *_compared(t, options), head, '', _reads(class_prompts.pooling(options))
    )
  pooling = family.pooling(options, POOLINGS, 'pooler')
  head = family.linear_head(t.width, options.classes)
  same = pooling == 'pooler'
  reference = f'{name}ForSequenceClassification' if same else ''
  return Outputs(
    *pooled(t, pooling, activation), head, reference, _reads(pooling)
  )


def _reads(pooling: str) -> int | None:
  return None if pooling == 'mean' else 1


def _tied(root: str) -> dict[str, str]:
  """What files may repeat of a tied readout."""
  lm = 'lm_head' if root == 'roberta' else 'cls.predictions'
  return {
    f'{lm}.decoder.weight': f'{root}.embeddings.word_embeddings.weight',
    f'{lm}.decoder.bias': f'{lm}.bias',
  }


def pooled(t: TransformerConfig, pooling: str, activation=jnp.tanh):
  """(final, features) of a classification; see `model`. activation: of the
  pooler."""

  def final(key) -> Tree:
    if pooling != 'pooler':
      return {}
    return {'pooler': linear.init(key, t.width, t.width)}

  def features(params, x, mask):
    if pooling == 'mean':
      return sequences.mean(x, mask)
    if pooling == 'cls':
      return x[:, 0].astype(jnp.float32)
    return activation(linear.apply(params['final']['pooler'], x[:, 0]))

  return final, features


def _compared(t: TransformerConfig, options: Options):
  """(final, features) of what is compared with class prompts."""
  _, features = pooled(t, class_prompts.pooling(options))

  def final(key) -> Tree:
    return {'classes': class_prompts.fresh(key, options.classes, t.width)}

  return final, features


def masked(t: TransformerConfig, vocabulary: int, tied: bool):
  """(final, features) of the masked language model: a layer before the
  readout."""

  def final(key) -> Tree:
    out = {
      'transform': linear.init(key, t.width, t.width),
      'norm': family.norm(t),
      'bias': jnp.zeros(vocabulary),
    }
    if not tied:
      key = jax.random.fold_in(key, 1)
      out['readout'] = family.table(key, vocabulary, t.width)
    return out

  def features(params, x, mask):
    del mask
    x = linear.apply(params['final']['transform'], x, t.dtype)
    x = ACTIVATIONS[t.activation](x)
    return transformer.normalize(t, params['final']['norm'], x)

  return final, features


def names(root: str, tied: bool = True) -> dict[str, Name | str]:
  """The names in files of BERT (`bert`) and RoBERTa (`roberta`).

  tied: whether the readout is the input embedding; its bias then has a name of
  its own.
  """
  stem, block = f'{root}.embeddings', f'{root}.encoder.layer.{{}}'
  shared = {
    'stem/word': Name(f'{stem}.word_embeddings.weight'),
    'stem/position': Name(f'{stem}.position_embeddings.weight'),
    'stem/type': Name(f'{stem}.token_type_embeddings.weight'),
    'stem/norm': f'{stem}.LayerNorm',
    'blocks/attn/q': f'{block}.attention.self.query',
    'blocks/attn/k': f'{block}.attention.self.key',
    'blocks/attn/v': f'{block}.attention.self.value',
    'blocks/attn/o': f'{block}.attention.output.dense',
    'blocks/norm1': f'{block}.attention.output.LayerNorm',
    'blocks/mlp/up': f'{block}.intermediate.dense',
    'blocks/mlp/down': f'{block}.output.dense',
    'blocks/norm2': f'{block}.output.LayerNorm',
  }
  lm = 'lm_head' if root == 'roberta' else 'cls.predictions'
  shared |= {
    'final/bias': Name(f'{lm}.bias' if tied else f'{lm}.decoder.bias'),
    'final/readout': Name(f'{lm}.decoder.weight'),
  }
  if root == 'roberta':
    return shared | {
      'final/pooler': 'classifier.dense',
      'final/transform': 'lm_head.dense',
      'final/norm': 'lm_head.layer_norm',
      'head': 'classifier.out_proj',
    }
  return shared | {
    'final/pooler': 'bert.pooler.dense',
    'final/transform': 'cls.predictions.transform.dense',
    'final/norm': 'cls.predictions.transform.LayerNorm',
    'head': 'classifier',
  }
