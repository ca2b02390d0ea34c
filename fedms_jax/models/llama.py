"""LLaMA (arXiv 2302.13971), and what the families in its layout share.

SmolLM is a LLaMA by its config.json, and so are many others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from fedms_jax.core.types import Tree
from fedms_jax.models import decoder, family, rotary, rotary_settings
from fedms_jax.models.family import Model, Name, Options, Words
from fedms_jax.models.rotary_settings import Rope
from fedms_jax.models.settings import Settings
from fedms_jax.models.transformer import TransformerConfig


class Usual(NamedTuple):
  """What holds in a family where its config.json is silent."""

  width: int = 4096
  blocks: int = 32
  heads: int = 32
  kv_heads: int = 0
  head_width: int = 0
  mlp_width: int = 11008
  eps: float = 1e-6
  positions: int = 2048
  vocabulary: int = 32000
  base: float = 10000.0
  tied: bool = False


LLAMA = Usual()


def words(config: Settings, usual: Usual = LLAMA) -> Words:
  """What the model takes."""
  positions = config.integer('max_position_embeddings', usual.positions)
  for key in ('rope_parameters', 'rope_scaling'):
    values = config.table(key)
    kind = values.get('rope_type') or values.get('type')
    if kind == 'dynamic' and isinstance(values.get('factor'), (int, float)):
      # Which is there to take more tokens than it was trained on.
      positions = max(positions, int(positions * values['factor']))
  return Words(positions, config.integer('vocab_size', usual.vocabulary))


def fields(config: Settings, usual: Usual, rope: Rope) -> dict[str, Any]:
  """What all of them say of their blocks alike, for `family.shape`."""
  out = {
    'blocks': config.blocks('num_hidden_layers', usual.blocks),
    'width': config.integer('hidden_size', usual.width),
    'heads': config.integer('num_attention_heads', usual.heads),
    'kv_heads': config.integer('num_key_value_heads', usual.kv_heads),
    'head_width': config.integer('head_dim', usual.head_width),
    'mlp_width': config.integer('intermediate_size', usual.mlp_width),
    'norm': 'rms',
    'norm_eps': config.number('rms_norm_eps', usual.eps),
    'gated': True,
    'causal': True,
    'rotary': rope.base,
    'rotary_scaling': rope.scaling,
    'qkv_bias': False,
    'out_bias': False,
    'mlp_bias': False,
  }
  turned = out['head_width'] or out['width'] // out['heads']
  turned = int(turned * rope.share)
  _check_pairs(rope.scaling, turned)
  return out | {'rotary_width': turned} if rope.share < 1.0 else out


def _check_pairs(scaling: rotary.Scaling, turned: int) -> None:
  """Raises `ValueError` unless the angles are those of so wide a head."""
  if turned % 2 or not turned:
    raise ValueError(
      f'config.json asks for {turned} rotary dimensions of a head; allowed: '
      'even numbers. Mend config.json.'
    )
  if isinstance(scaling, rotary.LongRope):
    for key in ('short', 'long'):
      found = len(getattr(scaling, key))
      if found != turned // 2:
        raise ValueError(
          f'config.json has {found} values in {key}_factor; allowed: '
          f'{turned // 2}, one for each rotary pair. Mend config.json.'
        )


def model(config: Settings, options: Options) -> Model:
  """A LLaMA of config.json."""
  config.refuse(rope_interleaved=False)
  bias = config.flag('attention_bias', False)
  own = fields(config, LLAMA, rotary_settings.read(config)) | {
    'qkv_bias': bias,
    'out_bias': bias,
    'mlp_bias': config.flag('mlp_bias', False),
  }
  activation = config.choice('hidden_act', 'silu', family.ACTIVATIONS)
  t = family.shape(options, activation=activation, **own)
  return build(config, options, t, kind='Llama')


def build(
  config: Settings,
  options: Options,
  t: TransformerConfig,
  *,
  kind: str,
  usual: Usual = LLAMA,
  names: Mapping[str, Name | str] | None = None,
  classifier: str = '',
  embedding_scale: float = 1.0,
  cap: float = 0.0,
) -> Model:
  """A model in this layout, when all else of config.json is read.

  kind: its name in the classes of transformers. classifier: the same of its
  classifier, where that is another. embedding_scale: of the tokens that enter
  the blocks. cap: see `family.readout`.
  """
  positions, vocabulary = words(config, usual)
  tied = config.flag('tie_word_embeddings', usual.tied)
  scale = jnp.asarray(embedding_scale, t.dtype)

  def stem(keys) -> Tree:
    return {'word': family.table(keys[0], vocabulary, t.width)}

  def embed(params, inputs):
    x = params['stem']['word'][jnp.maximum(inputs, 0)].astype(t.dtype)
    return x if embedding_scale == 1.0 else x * scale

  lm = options.head == 'causal_lm'
  return Model(
    decoder.backbone(
      t,
      options,
      stem=stem,
      embed=embed,
      vocabulary=vocabulary,
      tokens=family.length(options, positions),
      tied=tied,
      cap=cap,
    ),
    names or NAMES,
    prefix='model.',
    ignored=(
      r'(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq',
      r'(lm_head|score)\.weight',
    ),
    reference=decoder.reference(
      kind if lm or not classifier else classifier, 'ForCausalLM', options
    ),
    heads=decoder.HEAD_TENSORS,
    tied={'lm_head.weight': 'model.embed_tokens.weight'} if tied else {},
    unread=config.unread(),
  )


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
QK_NORMS: dict[str, Name | str] = {
  'blocks/attn/norm_q': f'{_BLOCK}.self_attn.q_norm',
  'blocks/attn/norm_k': f'{_BLOCK}.self_attn.k_norm',
}
