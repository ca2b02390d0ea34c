"""Gemma 2 (arXiv 2408.00118) and the text models of Gemma 3 (arXiv
2503.19786)."""

from __future__ import annotations

from typing import Any

from fedms_jax.models import family, llama, rotary_settings
from fedms_jax.models.family import Model, Name, Options
from fedms_jax.models.rotary_settings import Rope
from fedms_jax.models.settings import Settings

GEMMA2 = llama.Usual(
  width=2304,
  blocks=26,
  heads=8,
  kv_heads=4,
  head_width=256,
  mlp_width=9216,
  positions=8192,
  vocabulary=256000,
  tied=True,
)
GEMMA3 = GEMMA2._replace(positions=131072, vocabulary=262208, base=1_000_000.0)


def model(config: Settings, options: Options) -> Model:
  """A Gemma 2 of config.json."""
  rope = rotary_settings.read(config, positions=GEMMA2.positions)
  own = _fields(config, GEMMA2, rope)
  own['attention_cap'] = config.cap('attn_logit_softcapping', 50.0)
  # Every other block has a window, the first one among them.
  own |= _windows(config, own['blocks'], 2)
  return _build(config, options, own, 'Gemma2', 30.0)


def third(config: Settings, options: Options) -> Model:
  """A Gemma 3 of config.json: queries and keys are normed, and blocks with a
  window have rotary angles of their own."""
  # Its attention leaves this aside in transformers, against its name.
  config.refuse(attn_logit_softcapping=None)
  rope, local = _ropes(config)
  own = _fields(config, GEMMA3, rope) | {'qk_norm': True, 'rotary_local': local}
  pattern = config.integer(
    'sliding_window_pattern', 6, also='_sliding_window_pattern'
  )
  own |= _windows(config, own['blocks'], pattern)
  return _build(config, options, own, 'Gemma3', 0.0)


def _fields(config: Settings, usual: llama.Usual, rope: Rope) -> dict[str, Any]:
  config.refuse(use_bidirectional_attention=False)
  bias = config.flag('attention_bias', False)
  scalar = config.number('query_pre_attn_scalar', 256.0)
  if not scalar:
    raise ValueError(
      'config.json has query_pre_attn_scalar=0; allowed: more than 0. Mend '
      'config.json.'
    )
  return llama.fields(config, usual, rope) | {
    'norm': 'rms_offset',
    'branch_norms': True,
    'qkv_bias': bias,
    'out_bias': bias,
    'attention_scale': scalar**-0.5,
  }


def _windows(config: Settings, blocks: int, pattern: int) -> dict[str, Any]:
  """All blocks but each `pattern`-th are local."""
  usual = tuple(bool((i + 1) % pattern) for i in range(blocks))
  local = config.local(blocks) or usual
  window = config.integer('sliding_window', 4096)
  return {'local': local, 'window': window} if any(local) else {}


def _ropes(config: Settings) -> tuple[Rope, float]:
  """The angles of whole blocks, and the base of local ones."""
  own = config.number('rope_local_base_freq', 10000.0)
  tables = config.table('rope_parameters')
  local = tables.get('sliding_attention') or {}
  whole = tables.get('full_attention') or {}
  if tables.keys() - {'sliding_attention', 'full_attention'} or not (
    isinstance(local, dict) and isinstance(whole, dict)
  ):
    raise ValueError(
      f'config.json has rope_parameters={tables!r}; allowed: an object with '
      'the objects sliding_attention and full_attention. Mend config.json.'
    )
  positions = config.integer('max_position_embeddings', GEMMA3.positions)

  def found(values, where, base) -> Rope:
    return rotary_settings.of(values, where, base=base, positions=positions)

  base = config.number('rope_theta', GEMMA3.base)
  where = 'full_attention in rope_parameters'
  older = config.table('rope_scaling')
  rope = found(whole | older, 'rope_scaling' if older else where, base)
  below = found(local, 'sliding_attention in rope_parameters', own)
  if below.scaling != Rope(1.0).scaling or rope.scaling.gain != 1.0:
    raise ValueError(
      'rope_parameters of config.json stretch the angles of blocks with a '
      'window, or multiply those of the others; allowed: default for '
      'sliding_attention, default or linear for full_attention.'
    )
  config.refuse(partial_rotary_factor=1.0)
  if (rope.share, below.share) != (1.0, 1.0):
    raise ValueError(
      'rope_parameters of config.json have a partial_rotary_factor; allowed: '
      '1.0. This variant of the model is not supported.'
    )
  return rope, below.base


def _build(
  config: Settings,
  options: Options,
  own: dict[str, Any],
  kind: str,
  cap: float,
) -> Model:
  activation = config.choice(
    'hidden_activation', 'gelu_pytorch_tanh', family.ACTIVATIONS
  )
  # An older name of it, which transformers does not read.
  config.refuse(hidden_act=activation)
  t = family.shape(options, activation=activation, **own)
  third = kind == 'Gemma3'
  return llama.build(
    config,
    options,
    t,
    kind=kind,
    usual=GEMMA3 if third else GEMMA2,
    names=NAMES | llama.QK_NORMS if third else NAMES,
    classifier='Gemma3Text' if third else '',
    embedding_scale=t.width**0.5,
    cap=config.cap('final_logit_softcapping', cap),
  )


_BLOCK = 'model.layers.{}'
NAMES: dict[str, Name | str] = llama.NAMES | {
  'blocks/norm1_after': f'{_BLOCK}.post_attention_layernorm',
  'blocks/norm2': f'{_BLOCK}.pre_feedforward_layernorm',
  'blocks/norm2_after': f'{_BLOCK}.post_feedforward_layernorm',
}
