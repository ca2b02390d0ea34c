"""LLaMA (arXiv 2302.13971) and its successors in the same layout."""

from __future__ import annotations

import jax.numpy as jnp

from fedms_jax.core.types import Tree
from fedms_jax.models import decoder, family
from fedms_jax.models.family import Model, Name, Options, Words
from fedms_jax.models.settings import Settings


def words(config: Settings) -> Words:
  """What the model takes."""
  return Words(
    config.integer('max_position_embeddings', 2048),
    config.integer('vocab_size', 32000),
  )


def model(config: Settings, options: Options) -> Model:
  """A LLaMA of config.json."""
  config.refuse(partial_rotary_factor=1.0)
  width = config.integer('hidden_size', 4096)
  attention_bias = config.flag('attention_bias', False)
  base, scaling = rotary(config)
  t = family.shape(
    options,
    activation=config.choice('hidden_act', 'silu', family.ACTIVATIONS),
    blocks=config.blocks('num_hidden_layers', 32),
    width=width,
    heads=config.integer('num_attention_heads', 32),
    kv_heads=config.integer('num_key_value_heads', 0),
    head_width=config.integer('head_dim', 0),
    mlp_width=config.integer('intermediate_size', 11008),
    norm='rms',
    norm_eps=config.number('rms_norm_eps', 1e-6),
    gated=True,
    causal=True,
    rotary=base,
    rotary_scaling=scaling,
    qkv_bias=attention_bias,
    out_bias=attention_bias,
    mlp_bias=config.flag('mlp_bias', False),
  )
  positions, vocabulary = words(config)
  tied = config.flag('tie_word_embeddings', False)

  def stem(keys) -> Tree:
    return {'word': family.table(keys[0], vocabulary, width)}

  def embed(params, inputs):
    return params['stem']['word'][jnp.maximum(inputs, 0)].astype(t.dtype)

  return Model(
    decoder.backbone(
      t,
      options,
      stem=stem,
      embed=embed,
      vocabulary=vocabulary,
      tokens=family.length(options, positions),
      tied=tied,
    ),
    NAMES,
    prefix='model.',
    ignored=(
      r'(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq',
      r'(lm_head|score)\.weight',
    ),
    reference=decoder.reference('Llama', 'ForCausalLM', options),
    heads=decoder.HEAD_TENSORS,
    tied={'lm_head.weight': 'model.embed_tokens.weight'} if tied else {},
    unread=config.unread(),
  )


def rotary(config: Settings) -> tuple[float, tuple[float, ...]]:
  """Base and scaling of the rotary angles; see `transformer.frequencies`.

  Of `rope_scaling` and `rope_parameters` the former holds if both are there,
  as in transformers; the base must then be the same by both.
  """
  newer, older = config.table('rope_parameters'), config.table('rope_scaling')
  where = 'rope_scaling' if older else 'rope_parameters'
  values = older or newer
  rope = Settings(values, f'{where} of config.json')
  usual = config.number('rope_theta', 10000.0)
  base = rope.number('rope_theta', usual)
  if older and newer.get('rope_theta', base) != base:
    raise ValueError(
      f'config.json has rope_theta={newer["rope_theta"]!r} in rope_parameters, '
      f'but rope_scaling, which holds, has {base!r}. Give one of them alone.'
    )
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
  kind = rope.choice('type', 'default', needs)
  kind = rope.choice('rope_type', kind, needs)
  rope.refuse(partial_rotary_factor=1.0)
  numbers = {key: float(rope.number(key, 0.0)) for key in needs['llama3']}
  lacking = [key for key in needs[kind] if not numbers[key]]
  unknown = rope.unread()
  if lacking or unknown:
    raise ValueError(
      f'{where} of config.json, of the type {kind!r}, '
      + (f'lacks {lacking[0]}' if lacking else f'has {unknown[0].split()[0]}')
      + f'; allowed: {", ".join(("rope_theta", *needs[kind]))}. Mend it.'
    )
  return float(base), tuple(numbers[key] for key in needs[kind])


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
