"""DistilBERT (arXiv 1910.01108): BERT without token types and pooler."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fedms_jax.core.types import Tree
from fedms_jax.models import bert, family, transformer
from fedms_jax.models.family import Model, Name, Options, Words
from fedms_jax.models.settings import Settings
from fedms_jax.models.transformer import TransformerConfig


def words(config: Settings) -> Words:
  """What the model takes."""
  return Words(
    config.integer('max_position_embeddings', 512),
    config.integer('vocab_size', 30522),
  )


def model(config: Settings, options: Options) -> Model:
  """A DistilBERT of config.json.

  Features of a classification are as in `bert.model`; what is called pooler
  there is here a linear layer of CLS and relu, which belongs to the classifier
  of the files: plain checkpoints lack it.
  """
  family.choose('`Options.head`', options.head, bert.HEADS)
  t = _shape(config, options)
  # How it starts, drops out, and what transformers itself leaves aside.
  config.skip(
    'sinusoidal_pos_embds', 'qa_dropout', 'seq_classif_dropout', 'tie_weights_'
  )
  positions, vocabulary = words(config)
  tokens = family.length(options, positions)

  tied = config.flag('tie_word_embeddings', True)
  out = bert.outputs(
    t, options, tokens, vocabulary, tied, 'DistilBert', jax.nn.relu
  )
  word = 'distilbert.embeddings.word_embeddings.weight'
  return Model(
    family.backbone(
      t,
      storage=options.storage,
      stem=functools.partial(_stem, t, vocabulary, positions),
      final=out.final,
      embed=functools.partial(_embed, t),
      features=out.features,
      head=out.head,
      tokens=tokens,
      mask=bert.mask,
      reads=out.reads,
    ),
    names(tied),
    prefix='distilbert.',
    ignored=(
      r'.*position_ids',
      r'(pre_classifier|classifier|qa_outputs)\..*',
      r'vocab_(transform|layer_norm|projector)\..*',
    ),
    reference=out.reference,
    heads=(r'classifier\..*',),
    tied={'vocab_projector.weight': word} if tied else {},
    unread=config.unread(),
  )


def _shape(config: Settings, options: Options) -> TransformerConfig:
  return family.shape(
    options,
    activation=config.choice('activation', 'gelu', family.ACTIVATIONS),
    blocks=config.blocks('n_layers', 6, also='num_hidden_layers'),
    width=config.integer('dim', 768, also='hidden_size'),
    heads=config.integer('n_heads', 12, also='num_attention_heads'),
    mlp_width=config.integer('hidden_dim', 3072),
    norm_eps=1e-12,
    pre_norm=False,
  )


def _stem(t: TransformerConfig, vocabulary: int, positions: int, keys) -> Tree:
  return {
    'word': family.table(keys[0], vocabulary, t.width),
    'position': family.table(keys[1], positions, t.width),
    'norm': family.norm(t),
  }


def _embed(t: TransformerConfig, params, inputs):
  ids, _ = bert.split(inputs)
  stem = params['stem']
  x = stem['word'][jnp.maximum(ids, 0)].astype(jnp.float32)
  x = x + stem['position'][: ids.shape[1]].astype(jnp.float32)[None]
  return transformer.normalize(t, stem['norm'], x)


def names(tied: bool = True) -> dict[str, Name | str]:
  """The names in files. tied: see `bert.names`."""
  stem = 'distilbert.embeddings'
  block = 'distilbert.transformer.layer.{}'
  out: dict[str, Name | str] = {
    'stem/word': Name(f'{stem}.word_embeddings.weight'),
    'stem/position': Name(f'{stem}.position_embeddings.weight'),
    'stem/norm': f'{stem}.LayerNorm',
    'blocks/attn/q': f'{block}.attention.q_lin',
    'blocks/attn/k': f'{block}.attention.k_lin',
    'blocks/attn/v': f'{block}.attention.v_lin',
    'blocks/attn/o': f'{block}.attention.out_lin',
    'blocks/norm1': f'{block}.sa_layer_norm',
    'blocks/mlp/up': f'{block}.ffn.lin1',
    'blocks/mlp/down': f'{block}.ffn.lin2',
    'blocks/norm2': f'{block}.output_layer_norm',
    'final/pooler': 'pre_classifier',
    'final/transform': 'vocab_transform',
    'final/norm': 'vocab_layer_norm',
    'final/bias': Name('vocab_projector.bias'),
    'head': 'classifier',
  }
  return (
    out if tied else out | {'final/readout': Name('vocab_projector.weight')}
  )
