"""GPT-2 (Radford et al., 2019, Language Models are Unsupervised Multitask
Learners)."""

from __future__ import annotations

import jax.numpy as jnp

from fedms_jax.core.types import Tree
from fedms_jax.models import decoder, family
from fedms_jax.models.family import Model, Name, Options


def model(config: dict, options: Options) -> Model:
  """A GPT-2 of config.json."""
  family.refuse(
    config,
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    add_cross_attention=False,
  )
  width = config.get('n_embd', 768)
  t = family.shape(
    options,
    activation=config.get('activation_function', 'gelu_new'),
    blocks=config.get('n_layer', 12),
    width=width,
    heads=config.get('n_head', 12),
    mlp_width=config.get('n_inner') or 4 * width,
    norm_eps=config.get('layer_norm_epsilon', 1e-5),
    causal=True,
  )
  vocabulary = config.get('vocab_size', 50257)
  positions = config.get('n_positions', 1024)

  def stem(keys) -> Tree:
    return {
      'word': family.table(keys[0], vocabulary, width),
      'position': family.table(keys[1], positions, width),
    }

  def embed(params, inputs):
    stem = params['stem']
    x = stem['word'][jnp.maximum(inputs, 0)].astype(t.dtype)
    return x + stem['position'][: inputs.shape[1]].astype(t.dtype)

  return Model(
    decoder.backbone(
      t,
      options,
      stem=stem,
      embed=embed,
      vocabulary=vocabulary,
      tokens=family.length(options, positions),
      tied=config.get('tie_word_embeddings', True),
    ),
    NAMES,
    prefix='transformer.',
    ignored=(
      r'(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)',
      r'(lm_head|score)\.weight',
    ),
  )


def _names() -> dict[str, Name | str]:
  # Kernels are kept as [d_in, d_out] here, and those of q, k and v as one.
  block = 'transformer.h.{}'
  kernels = {
    'attn/q': ('attn.c_attn', (0, 3)),
    'attn/k': ('attn.c_attn', (1, 3)),
    'attn/v': ('attn.c_attn', (2, 3)),
    'attn/o': ('attn.c_proj', (0, 1)),
    'mlp/up': ('mlp.c_fc', (0, 1)),
    'mlp/down': ('mlp.c_proj', (0, 1)),
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
