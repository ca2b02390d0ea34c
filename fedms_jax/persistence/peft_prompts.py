"""Soft prompts and prefixes in the files of PEFT.

PEFT has one array for either, `prompt_embeddings`: of PROMPT_TUNING [P, D], of
PREFIX_TUNING [P, 2 L W], where W is the width of all keys of a block and each
of P rows has block by block a key and a value. Beside it is the head, where one
trains.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedms_jax.core import tree
from fedms_jax.core.types import Tree
from fedms_jax.models.family import Model
from fedms_jax.persistence import peft_heads
from fedms_jax.persistence.adapter_config import CONFIG
from fedms_jax.persistence.files import write_atomic
from fedms_jax.persistence.peft import WEIGHTS, write_tensors

# Families whose tokens know their places by rotary angles alone. Others add a
# vector for each place, and PEFT moves their tokens behind the prompt.
ROTARY = ('llama', 'qwen2', 'qwen3')
_ARRAY, _BASE = 'prompt_embeddings', 'base_model.'


def check(
  config: Mapping[str, Any], task: str | None, prefix: bool = False
) -> None:
  """Raises `ValueError` for a model of which PEFT would make other logits.

  config: its config.json. task: PEFT's task_type, or None. prefix: it is a
  prefix that is added.
  """
  kind = config.get('model_type')
  if kind not in ROTARY or config.get('use_sliding_window'):
    raise ValueError(
      f'PEFT puts a prompt or prefix of {kind} elsewhere than it was trained '
      f'(its tokens move, or see a window); allowed: {", ".join(ROTARY)} '
      'without windows.'
    )
  if task is None:
    raise ValueError(
      'this head on this feature has no class of transformers, so that PEFT '
      'has no task_type for it; allowed: classification and causal_lm as the '
      'family has them.'
    )
  if prefix and task != 'CAUSAL_LM':
    raise ValueError(
      f'PEFT has no prefix for {task} of {kind}; allowed: causal_lm.'
    )


def prefix_array(blocks: Tree) -> np.ndarray:
  """Prefixes {'attn': {'prefix': {'k', 'v'}}} [L, P, W] as PEFT's array.

  Raises:
    ValueError: a block has none, which PEFT cannot say.
  """
  found = tree.flat(blocks)
  k, v = (np.asarray(found[f'attn/prefix/{name}']) for name in 'kv')
  off = [str(i) for i, x in enumerate(v) if not x.any()]
  if off:
    raise ValueError(
      f'PEFT has a prefix in every block, and block {", ".join(off)} has none '
      'here; allowed: runs that have trained all blocks.'
    )
  pairs = np.stack([k, v], axis=1)  # [L, 2, P, W]
  return pairs.transpose(2, 0, 1, 3).reshape(k.shape[1], -1)


def save_prefix(
  folder: str | os.PathLike, model: Model, blocks: Tree, heads: int, **kwargs
) -> None:
  """Writes prefixes of all blocks as PREFIX_TUNING. heads: of the keys. For
  the rest see `save_prompt`."""
  array = prefix_array(blocks)
  count, _, width = np.shape(tree.flat(blocks)['attn/prefix/k'])
  config = {
    'peft_type': 'PREFIX_TUNING',
    'encoder_hidden_size': width,
    'prefix_projection': False,
    'token_dim': width,
    'num_attention_heads': heads,
    'num_layers': count,
  }
  _save(folder, model, array, config, **kwargs)


def save_prompt(
  folder: str | os.PathLike,
  model: Model,
  prompt,
  *,
  base: str,
  task: str,
  head: Tree | None = None,
  labels: Sequence[str] = (),
) -> None:
  """Writes a soft prompt [P, D] before the input as PROMPT_TUNING.

  Args:
    folder: made if absent.
    model: which module is which.
    prompt: the vectors.
    base: name or folder of the base model.
    task: PEFT's task_type.
    head: a trained head, written as a module to save.
    labels: the names of its outputs.
  """
  array = np.asarray(prompt)
  config = {
    'peft_type': 'PROMPT_TUNING',
    'prompt_tuning_init': 'RANDOM',
    'token_dim': array.shape[1],
    'num_attention_heads': 1,
    'num_layers': model.backbone.blocks,
  }
  more = {'base': base, 'task': task, 'head': head, 'labels': labels}
  _save(folder, model, array, config, **more)


def _save(folder, model, array, config, *, base, task, head=None, labels=()):
  """Writes both files; see `save_prompt`."""
  config = config | {
    'task_type': task,
    'base_model_name_or_path': base,
    'num_virtual_tokens': len(array),
    'num_transformer_submodules': 1,
    'inference_mode': True,
    'modules_to_save': None,
  }
  tensors = {_ARRAY: array.astype(np.float32)}
  if head:
    module, leaves = peft_heads.written(model, head)
    config['modules_to_save'] = [module]
    tensors |= {f'{_BASE}{module}.{k}': x for k, x in leaves.items()}
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_tensors(folder / WEIGHTS, tensors, labels if head else ())
  write_atomic(folder / CONFIG, json.dumps(config, indent=2) + '\n')
