"""Mistral (arXiv 2310.06825): a LLaMA whose positions see a window."""

from __future__ import annotations

from fedms_jax.models import family, llama, rotary_settings
from fedms_jax.models.family import Model, Options
from fedms_jax.models.settings import Settings

USUAL = llama.Usual(kv_heads=8, mlp_width=14336, positions=131072)


def model(config: Settings, options: Options) -> Model:
  """A Mistral of config.json."""
  rope = rotary_settings.read(config, positions=USUAL.positions)
  own = llama.fields(config, USUAL, rope)
  # Without the key it has one, and with null none.
  window = config.size('sliding_window', 4096)
  if window:
    own |= {'window': window, 'local': (True,) * own['blocks']}
  activation = config.choice('hidden_act', 'silu', family.ACTIVATIONS)
  t = family.shape(options, activation=activation, **own)
  return llama.build(config, options, t, kind='Mistral', usual=USUAL)
