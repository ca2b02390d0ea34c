"""GPT-2 (Radford et al., 2019, Language Models are Unsupervised Multitask
Learners)."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from fedms_jax.core.types import Tree
from fedms_jax.models import decoder, family
from fedms_jax.models.family import Model, Name, Options, Part, Words
from fedms_jax.models.settings import Settings
from fedms_jax.models.transformer import TransformerConfig


def words(config: Settings) -> Words:
  """What the model takes."""
  return Words(
    config.integer('n_positions', 1024, also='max_position_embeddings'),
    config.integer('vocab_size', 50257),
  )


def model(config: Settings, options: Options) -> Model:
  """A GPT-2 of config.json."""
  config.refuse(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
  width = config.integer('n_embd', 768, also='hidden_size')
  t = family.shape(
    options,
    activation=config.choice(
      'activation_function', 'gelu_new', family.ACTIVATIONS
    ),
    blocks=config.blocks('n_layer', 12, also='num_hidden_layers'),
    width=width,
    heads=config.integer('n_head', 12, also='num_attention_heads'),
    mlp_width=config.integer('n_inner', 4 * width),
    norm_eps=config.number('layer_norm_epsilon', 1e-5),
    causal=True,
  )
  positions, vocabulary = words(config)
  tied = config.flag('tie_word_embeddings', True)

  return Model(
    decoder.backbone(
      t,
      options,
      stem=functools.partial(_stem, t, vocabulary, positions),
      embed=functools.partial(_embed, t),
      vocabulary=vocabulary,
      tokens=family.length(options, positions),
      tied=tied,
    ),
    NAMES,
    prefix='transformer.',
    ignored=(
      r'(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)',
      r'(lm_head|score)\.weight',
    ),
    reference=decoder.reference('GPT2', 'LMHeadModel', options),
    heads=decoder.HEAD_TENSORS,
    tied={'lm_head.weight': 'transformer.wte.weight'} if tied else {},
    unread=config.unread(),
  )


def _stem(t: TransformerConfig, vocabulary: int, positions: int, keys) -> Tree:
  return {
    'word': family.table(keys[0], vocabulary, t.width),
    'position': family.table(keys[1], positions, t.width),
  }


def _embed(t: TransformerConfig, params, inputs):
  stem = params['stem']
  x = stem['word'][jnp.maximum(inputs, 0)].astype(t.dtype)
  return x + stem['position'][: inputs.shape[1]].astype(t.dtype)[None]


def _names() -> dict[str, Name | str]:
  # Kernels are kept as [d_in, d_out] here, and those of q, k and v as one.
  block = 'transformer.h.{}'
  kernels = {
    'attn/q': ('attn.c_attn', Part(0, 3)),
    'attn/k': ('attn.c_attn', Part(1, 3)),
    'attn/v': ('attn.c_attn', Part(2, 3)),
    'attn/o': ('attn.c_proj', Part()),
    'mlp/up': ('mlp.c_fc', Part()),
    'mlp/down': ('mlp.c_proj', Part()),
  }
  out = {
    'stem/word': Name('transformer.wte.weight'),
    'stem/position': Name('transformer.wpe.weight'),
    'blocks/norm1': f'{block}.ln_1',
    'blocks/norm2': f'{block}.ln_2',
    'final/norm': 'transformer.ln_f',
    'final/readout': Name('lm_head.weight'),
    'head': 'score',
  }
  for ours, (theirs, part) in kernels.items():
    for leaf, kind in (('kernel', 'weight'), ('bias', 'bias')):
      name = Name(f'{block}.{theirs}.{kind}', part=part)
      out[f'blocks/{ours}/{leaf}'] = name
  return out


NAMES = _names()
