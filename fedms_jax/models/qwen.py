"""Qwen2 (arXiv 2407.10671), which Qwen2.5 is too, and Qwen3 (arXiv
2505.09388)."""

from __future__ import annotations

from typing import Any

from fedms_jax.models import family, llama, rotary_settings
from fedms_jax.models.family import Model, Options
from fedms_jax.models.settings import Settings

QWEN2 = llama.Usual(
  kv_heads=32, mlp_width=22016, positions=32768, vocabulary=151936
)
QWEN3 = QWEN2._replace(head_width=128)


def model(config: Settings, options: Options) -> Model:
  """A Qwen2 of config.json: queries, keys and values have a bias."""
  own = _fields(config, QWEN2) | {'qkv_bias': True}
  activation = config.choice('hidden_act', 'silu', family.ACTIVATIONS)
  t = family.shape(options, activation=activation, **own)
  return llama.build(config, options, t, kind='Qwen2', usual=QWEN2)


def third(config: Settings, options: Options) -> Model:
  """A Qwen3 of config.json: queries and keys are normed."""
  bias = config.flag('attention_bias', False)
  own = _fields(config, QWEN3)
  own |= {'qk_norm': True, 'qkv_bias': bias, 'out_bias': bias}
  activation = config.choice('hidden_act', 'silu', family.ACTIVATIONS)
  t = family.shape(options, activation=activation, **own)
  names = llama.NAMES | llama.QK_NORMS
  return llama.build(config, options, t, kind='Qwen3', usual=QWEN3, names=names)


def _fields(config: Settings, usual: llama.Usual) -> dict[str, Any]:
  config.refuse(use_mrope=False)
  rope = rotary_settings.read(config, positions=usual.positions)
  own = llama.fields(config, usual, rope)
  blocks = own['blocks']
  windowed = config.flag('use_sliding_window', False)
  window = config.size('sliding_window', 4096)
  first = config.integer('max_window_layers', 28, low=0)
  # By default, the upper blocks are those with a window.
  local = config.local(blocks) or tuple(i >= first for i in range(blocks))
  if windowed and window and any(local):
    own |= {'window': window, 'local': local}
  return own
