"""adapter_config.json of PEFT: what of it is honored, refused or harmless."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedms_jax.persistence import json_files

CONFIG = 'adapter_config.json'
# What an adapter may ask for that plain LoRA has not, and the usual value.
_USUAL = {
  'peft_type': 'LORA',
  'bias': 'none',
  'use_dora': False,
  'use_qalora': False,
  'use_bdlora': None,
  'lora_bias': False,
  'layer_replication': None,
  'alora_invocation_tokens': None,
  'arrow_config': None,
  'kasa_config': None,
  'monteclora_config': None,
  'velora_config': None,
  'trainable_token_indices': None,
  'target_parameters': None,
}
# Starts that leave the weights of the base model as they are. Those of pissa,
# olora, loftq, corda and lora_ga change them.
_STARTS = ('gaussian', 'eva', 'orthogonal')
# Read here, or told by the tensors, or of training, or settings of a start.
_KNOWN = frozenset(
  'r lora_alpha use_rslora alpha_pattern rank_pattern init_lora_weights '
  'modules_to_save target_modules exclude_modules layers_to_transform '
  'layers_pattern fan_in_fan_out lora_dropout inference_mode task_type '
  'base_model_name_or_path revision auto_mapping peft_version '
  'megatron_config megatron_core loftq_config eva_config corda_config '
  'lora_ga_config runtime_config qalora_group_size '
  'ensure_weight_tying'.split()
)


class AdapterConfig(NamedTuple):
  """r, alpha: of all modules that the patterns do not name. ranks, alphas: of
  modules by the end of their names, the first that fits. root: whether alpha
  is divided by the root of the rank (rsLoRA, arXiv 2312.03732). unread: keys
  that are not known."""

  r: int
  alpha: float
  ranks: dict[str, float]
  alphas: dict[str, float]
  root: bool
  unread: tuple[str, ...]

  def rank(self, module: str) -> int:
    """R of a module."""
    return int(_found(self.ranks, module, self.r))

  def scale(self, module: str) -> float:
    """What the product of a module's A and B is multiplied by."""
    rank = self.rank(module)
    alpha = _found(self.alphas, module, self.alpha)
    return alpha / (rank**0.5 if self.root else rank)


def read(folder: pathlib.Path) -> AdapterConfig:
  """The config of an adapter, checked to be plain LoRA on its base as it is.

  Raises:
    ValueError: it is another method, or changes the base model.
  """
  where = f'the adapter {folder}'
  config = {
    key: value
    for key, value in json_files.read(folder / CONFIG).items()
    if value is not None
  }
  for key, usual in _USUAL.items():
    if config.get(key, usual) not in (usual, [], {}):
      raise ValueError(
        f'{where} has {key}={config[key]!r}; allowed: {usual!r}, plain LoRA.'
      )
  start = config.get('init_lora_weights', True)
  if not isinstance(start, bool) and start not in _STARTS:
    raise ValueError(
      f'{where} has init_lora_weights={start!r}, which changes the base model; '
      f'allowed: true, false, {", ".join(_STARTS)}. Convert it, with PEFT: '
      'save_pretrained with path_initial_model_for_weight_conversion.'
    )
  root = config.get('use_rslora', False)
  if not isinstance(root, bool):
    raise ValueError(f'{where} has use_rslora={root!r}; allowed: true, false.')
  r = _number(where, 'r', config.get('r', 8), whole=True)
  return AdapterConfig(
    int(r),
    _number(where, 'lora_alpha', config.get('lora_alpha', 8)),
    _pattern(where, 'rank_pattern', config, whole=True),
    _pattern(where, 'alpha_pattern', config),
    root,
    tuple(sorted(config.keys() - _KNOWN - _USUAL.keys())),
  )


def _number(where: str, key: str, value: Any, whole: bool = False) -> float:
  kinds = (int,) if whole else (int, float)
  if type(value) not in kinds or value <= 0:
    allowed = 'whole numbers from 1' if whole else 'numbers above 0'
    raise ValueError(f'{where} has {key}={value!r}; allowed: {allowed}.')
  return value


def _pattern(
  where: str, key: str, config: Mapping[str, Any], whole: bool = False
) -> dict[str, float]:
  """Names of modules, or ends of them -> number. PEFT reads these names as
  regular expressions; here they are names, with dots that may be escaped."""
  found = config.get(key, {})
  if not isinstance(found, dict):
    raise ValueError(f'{where} has {key}={found!r}; allowed: an object.')
  out = {}
  for name, value in found.items():
    plain = name.replace(r'\.', '.')
    if not re.fullmatch(r'\^?[\w.-]+', plain):
      raise ValueError(
        f'{where} has {name!r} in {key}; allowed: names of modules, no regular '
        'expressions. Name each module.'
      )
    out[plain] = _number(where, f'{key} of {name}', value, whole)
  return out


def _found(pattern: Mapping[str, float], module: str, usual: float) -> float:
  for name, value in pattern.items():
    whole = name.removeprefix('^')
    if module == whole or name == whole and module.endswith(f'.{name}'):
      return value
  return usual
