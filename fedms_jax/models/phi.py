"""Phi-3 (arXiv 2404.14219) and Phi-4-mini (arXiv 2503.01743): a LLaMA whose
files keep queries, keys and values in one tensor, and gate and up in another.
"""

from __future__ import annotations

from fedms_jax.models import family, llama, rotary_settings
from fedms_jax.models.family import Model, Name, Options, Part
from fedms_jax.models.settings import Settings
from fedms_jax.models.transformer import TransformerConfig

USUAL = llama.Usual(
  width=3072, mlp_width=8192, eps=1e-5, positions=4096, vocabulary=32064
)


def model(config: Settings, options: Options) -> Model:
  """A Phi-3 of config.json."""
  config.refuse(
    attention_bias=False,
    mlp_bias=False,
    lm_head_bias=False,
    full_attn_mod=1,
    interpolate_factor=1,
  )
  rope = rotary_settings.read(
    config,
    positions=USUAL.positions,
    partial=True,
    names={'su': 'longrope', 'yarn': 'longrope'},  # as in transformers
    context=4096,
  )
  own = llama.fields(config, USUAL, rope)
  if window := config.size('sliding_window', 0):
    own |= {'window': window, 'local': (True,) * own['blocks']}
  activation = config.choice('hidden_act', 'silu', family.ACTIVATIONS)
  t = family.shape(options, activation=activation, **own)
  return llama.build(
    config, options, t, kind='Phi3', usual=USUAL, names=_names(t)
  )


def _names(t: TransformerConfig) -> dict[str, Name | str]:
  layer = 'model.layers.{}.'
  heads, groups = t.heads, t.groups
  every = heads + 2 * groups

  def qkv(first: int, count: int) -> Name:
    return Name(f'{layer}self_attn.qkv_proj', part=Part(first, every, count))

  return llama.NAMES | {
    'blocks/attn/q': qkv(0, heads),
    'blocks/attn/k': qkv(heads, groups),
    'blocks/attn/v': qkv(heads + groups, groups),
    'blocks/mlp/gate': Name(f'{layer}mlp.gate_up_proj', part=Part(0, 2)),
    'blocks/mlp/up': Name(f'{layer}mlp.gate_up_proj', part=Part(1, 2)),
  }
