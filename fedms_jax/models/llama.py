"""LLaMA (arXiv 2302.13971) and its successors in the same layout."""

from __future__ import annotations

import jax.numpy as jnp

from fedms_jax.core.types import Tree
from fedms_jax.models import decoder, family
from fedms_jax.models.family import Model, Name, Options


def model(config: dict, options: Options) -> Model:
  """A LLaMA of config.json."""
  family.refuse(config, partial_rotary_factor=1.0)
  width = config.get('hidden_size', 4096)
  base, scaling = rotary(config)
  t = family.shape(
    options,
    activation=config.get('hidden_act', 'silu'),
    blocks=config.get('num_hidden_layers', 32),
    width=width,
    heads=config.get('num_attention_heads', 32),
    kv_heads=config.get('num_key_value_heads') or 0,
    head_width=config.get('head_dim') or 0,
    mlp_width=config.get('intermediate_size', 11008),
    norm='rms',
    norm_eps=config.get('rms_norm_eps', 1e-6),
    gated=True,
    causal=True,
    rotary=base,
    rotary_scaling=scaling,
    qkv_bias=config.get('attention_bias', False),
    out_bias=config.get('attention_bias', False),
    mlp_bias=config.get('mlp_bias', False),
  )
  vocabulary = config.get('vocab_size', 32000)

  def stem(keys) -> Tree:
    return {'word': family.table(keys[0], vocabulary, width)}

  def embed(params, inputs):
    return params['stem']['word'][jnp.maximum(inputs, 0)].astype(t.dtype)

  positions = config.get('max_position_embeddings', 2048)
  return Model(
    decoder.backbone(
      t,
      options,
      stem=stem,
      embed=embed,
      vocabulary=vocabulary,
      tokens=family.length(options, positions),
      tied=config.get('tie_word_embeddings', False),
    ),
    NAMES,
    prefix='model.',
    ignored=(
      r'(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq',
      r'(lm_head|score)\.weight',
    ),
  )


def rotary(config: dict) -> tuple[float, tuple[float, ...]]:
  """Base and scaling of the rotary angles; see `transformer.frequencies`."""
  rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
  base = rope.get('rope_theta', config.get('rope_theta', 10000.0))
  kind = rope.get('rope_type', rope.get('type', 'default'))
  needs = {
    'default': (),
    'linear': ('factor',),
    'llama3': (
      'factor',
      'low_freq_factor',
      'high_freq_factor',
      'original_max_position_embeddings',
    ),
  }
  family.choose('rope_type in config.json', kind, needs)
  return float(base), tuple(float(rope[key]) for key in needs[kind])


_BLOCK = 'model.layers.{}'
NAMES: dict[str, Name | str] = {
  'stem/word': Name('model.embed_tokens.weight'),
  'blocks/norm1': f'{_BLOCK}.input_layernorm',
  'blocks/attn/q': f'{_BLOCK}.self_attn.q_proj',
  'blocks/attn/k': f'{_BLOCK}.self_attn.k_proj',
  'blocks/attn/v': f'{_BLOCK}.self_attn.v_proj',
  'blocks/attn/o': f'{_BLOCK}.self_attn.o_proj',
  'blocks/norm2': f'{_BLOCK}.post_attention_layernorm',
  'blocks/mlp/gate': f'{_BLOCK}.mlp.gate_proj',
  'blocks/mlp/up': f'{_BLOCK}.mlp.up_proj',
  'blocks/mlp/down': f'{_BLOCK}.mlp.down_proj',
  'final/norm': 'model.norm',
  'final/readout': Name('lm_head.weight'),
  'head': 'score',
}
