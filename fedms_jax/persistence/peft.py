"""LoRA in the files of PEFT: adapter_config.json, adapter_model.safetensors.

PEFT keeps A as [R, d_in] and B as [d_out, R] for each block, under the names
of the modules of `transformers`. Where such a module holds several of our
kernels (GPT-2's q, k and v), their LoRAs share a module: written side by
side, its rank is the sum of theirs.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.traverse_util as traverse
import numpy as np
import safetensors
import safetensors.numpy

from fedms_jax.core.types import Tree
from fedms_jax.models import renaming
from fedms_jax.models.family import Model

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_ROOT = 'base_model.model.'
# What an adapter may ask for that plain LoRA has not, and the usual value.
_USUAL = {
  'peft_type': 'LORA',
  'bias': 'none',
  'use_dora': False,
  'lora_bias': False,
  'trainable_token_indices': None,
  'target_parameters': None,
}


# transformers 5 has other names for the modules of ViT and DeiT than their
# files have, and PEFT does not translate them: adapters are written under both.
_NEWER = {
  '.encoder.layer.': '.layers.',
  '.attention.attention.query': '.attention.q_proj',
  '.attention.attention.key': '.attention.k_proj',
  '.attention.attention.value': '.attention.v_proj',
  '.attention.output.dense': '.attention.o_proj',
  '.intermediate.dense': '.mlp.fc1',
  '.output.dense': '.mlp.fc2',
}


class Place(NamedTuple):
  """Where the LoRA of one kernel lies: the module's name with `{}` for the
  number of the block, which of its equal parts, and the first number."""

  target: str
  module: str
  part: int
  parts: int
  first: int

  def of(self, block: int) -> str:
    """The name of the module of a block."""
    return self.module.replace('{}', str(block + self.first))


def places(model: Model, targets: Collection[str]) -> list[Place]:
  """The places of targets such as `attn/q`; none where files have none."""
  out = []
  for target in targets:
    name = renaming.source(model, f'blocks/{target}/kernel')
    if name is not None:
      module = name.tensor.removesuffix('.weight')
      out.append(Place(target, module, *name.part, name.first))
  return out


def save(
  folder: str | os.PathLike,
  model: Model,
  lora: Tree,
  *,
  rank: int,
  alpha: float,
  base: str,
  modules: Collection[str],
  task: str | None = None,
  head: Tree | None = None,
  bare: bool = False,
) -> None:
  """Writes an adapter, inactive blocks (B = 0) included.

  Args:
    folder: made if absent.
    model: which module is which.
    lora: stacked, as `lora.init` makes it.
    rank: R.
    alpha: the update is alpha / R times A B.
    base: name or folder of the base model.
    modules: names of all modules of the base model, so that short names are
      written only where they are unambiguous.
    task: PEFT's task_type.
    head: a trained head, written as a module to save.
    bare: name the modules as in the model without a head.
  """
  found = places(model, _targets(lora))
  flat = traverse.flatten_dict(lora, sep='/')
  prefix = model.prefix if bare else ''
  tensors, ranks, names = {}, {}, set()
  for module in dict.fromkeys(p.module for p in found):
    shared = sorted(
      (p for p in found if p.module == module), key=lambda p: p.part
    )
    blocks = len(flat[f'{shared[0].target}/a'])
    for block in range(blocks):
      a, b = _joined(flat, shared, block)
      for name in _spellings(model, shared[0].of(block)):
        name = name.removeprefix(prefix)
        tensors[f'{_ROOT}{name}.lora_A.weight'] = a
        tensors[f'{_ROOT}{name}.lora_B.weight'] = b
        names.add(name)
    if len(shared) > 1:
      ranks[module.partition('{}.')[2]] = len(shared)
  config = {
    'peft_type': 'LORA',
    'task_type': task,
    'base_model_name_or_path': base,
    'r': rank,
    'lora_alpha': alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'target_modules': _short(names, modules),
    'rank_pattern': {k: count * rank for k, count in ranks.items()},
    'alpha_pattern': {k: count * alpha for k, count in ranks.items()},
    'fan_in_fan_out': _is_conv1d(model, found),
    'inference_mode': True,
    'modules_to_save': None,
  }
  if head:
    module, leaves = _head(model, head)
    config['modules_to_save'] = [module]
    tensors |= {f'{_ROOT}{module}.{k}': x for k, x in leaves.items()}
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_tensors(folder / WEIGHTS, tensors)
  _replace(
    folder / CONFIG,
    lambda path: path.write_text(json.dumps(config, indent=2) + '\n'),
  )


def load(
  folder: str | os.PathLike, model: Model, start: Tree, *, scale: float
) -> tuple[Tree, Tree | None]:
  """An adapter as stacked LoRA, and its head if it has one.

  Args:
    folder: as PEFT or `save` writes it.
    model: which module is which.
    start: LoRA of the wanted targets and rank; blocks that the adapter leaves
      out stay as they are here.
    scale: alpha / R of the result; a B that was trained under another scale
      is multiplied so that the model is the same.

  Raises:
    ValueError: the adapter is no plain LoRA, or has other targets or another
      rank than `start`.
  """
  config, tensors = _read(pathlib.Path(folder))
  where = f'the adapter in {folder}'
  out = {
    name: np.array(x)
    for name, x in traverse.flatten_dict(start, sep='/').items()
  }
  known = places(model, _all_targets(model))
  by_module = {}
  for place in known:
    for block in range(model.backbone.blocks):
      for name in _spellings(model, place.of(block)):
        pair = (place, block)
        by_module.setdefault(name, []).append(pair)
        if model.prefix:
          bare = name.removeprefix(model.prefix)
          by_module.setdefault(bare, []).append(pair)
  for module, pairs in by_module.items():
    names = [f'{_ROOT}{module}.lora_{x}.weight' for x in 'AB']
    if not all(name in tensors for name in names):
      continue
    a, b = (tensors.pop(name) for name in names)
    b = b * (_scale(config, module, len(a)) / scale)
    for place, block in pairs:
      size = len(b) // place.parts
      piece = b[place.part * size : (place.part + 1) * size]
      if f'{place.target}/a' in out:
        others = [p for p, _ in pairs if f'{p.target}/a' in out]
        order = sorted(p.part for p in others).index(place.part)
        _fill(out, place, block, a, piece, order, where)
      elif piece.any():
        raise ValueError(
          f'{where} adapts {place.target} too. Add it to --lora.targets.'
        )
  head = _found_head(model, tensors)
  if tensors:
    shown = ', '.join(sorted(tensors)[:5])
    raise ValueError(
      f'{where} adapts what this model has not, or what is not supported: '
      f'{shown}. Adapt linear layers of its blocks: {_kernels(known)}.'
    )
  return traverse.unflatten_dict(out, sep='/'), head


def _fill(out, place: Place, block: int, a, b, order: int, where: str) -> None:
  """Puts A [r, d_in] and B [d_out, r] of a block into the stacked LoRA.

  order: of this kernel among the adapted ones of its module; if they were
  written side by side, those are its columns.
  """
  target = place.target
  rank = out[f'{target}/a'].shape[-1]
  if len(a) != rank:
    own = slice(order * rank, (order + 1) * rank)
    apart = np.count_nonzero(b) == np.count_nonzero(b[:, own])
    if place.parts == 1 or len(a) < own.stop or not apart:
      raise ValueError(
        f'{where} has rank {len(a)} at {target}, not --lora.rank={rank}. Give '
        f'--lora.rank={len(a)}.'
      )
    a, b = a[own], b[:, own]
  out[f'{target}/a'][block] = a.T
  out[f'{target}/b'][block] = b.T


def _joined(flat, shared: list[Place], block: int):
  """A [r, d_in] and B [d_out, r] of a module: its kernels' LoRAs side by
  side, each acting on its own part of the outputs."""
  pieces = [
    (np.asarray(flat[f'{p.target}/a'][block]).T,
     np.asarray(flat[f'{p.target}/b'][block]).T)
    for p in shared
  ]  # fmt: skip
  rank, size = pieces[0][0].shape[0], pieces[0][1].shape[0]
  b = np.zeros((size * shared[0].parts, rank * len(shared)), np.float32)
  for i, (place, (_, piece)) in enumerate(zip(shared, pieces, strict=True)):
    rows = slice(place.part * size, (place.part + 1) * size)
    b[rows, i * rank : (i + 1) * rank] = piece
  return np.concatenate([a for a, _ in pieces]), b


def _targets(lora: Tree) -> list[str]:
  flat = traverse.flatten_dict(lora, sep='/')
  return [name.removesuffix('/a') for name in flat if name.endswith('/a')]


def _all_targets(model: Model) -> list[str]:
  """Everything in a block that has a name, as a target."""
  paths = {name.removesuffix('/kernel') for name in model.names}
  return [
    path.removeprefix('blocks/')
    for path in sorted(paths)
    if re.match(r'blocks/(.*/)?(attn|mlp)/\w+$', path)
  ]


def _is_conv1d(model: Model, found: list[Place]) -> bool:
  """Whether the files keep these kernels as [d_in, d_out]."""
  name = renaming.source(model, f'blocks/{found[0].target}/kernel')
  return not name.axes


def _short(names: Collection[str], modules: Collection[str]) -> list[str]:
  """The part of the names behind the number of the block, if no other module
  ends so; else the names."""
  ends = {re.sub(r'^.*?\.\d+\.', '', name) for name in names}
  meant = {m for m in modules if any(m.endswith(f'.{end}') for end in ends)}
  return sorted(ends if len(meant) <= len(names) else names)


def _spellings(model: Model, name: str) -> list[str]:
  """The names that a module has in different versions of transformers."""
  if model.prefix not in ('vit.', 'deit.'):
    return [name]
  newer = name
  for old, new in _NEWER.items():
    newer = newer.replace(old, new)
  return [name, newer]


def _head(model: Model, head: Tree) -> tuple[str, dict[str, np.ndarray]]:
  """The module of the head, and its leaves as torch keeps them."""
  module = renaming.source(model, 'head/kernel').tensor.removesuffix('.weight')
  leaves = {'weight': np.asarray(head['kernel']).T}
  if 'bias' in head:
    leaves['bias'] = np.asarray(head['bias'])
  return module, leaves


def _found_head(model: Model, tensors: dict[str, np.ndarray]) -> Tree | None:
  """Takes the head out of the tensors."""
  name = renaming.source(model, 'head/kernel')
  key = _ROOT + (name.tensor if name else '')
  if key not in tensors:
    return None
  head = {'kernel': tensors.pop(key).T}
  bias = key.removesuffix('.weight') + '.bias'
  if bias in tensors:
    head['bias'] = tensors.pop(bias)
  return head


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
  alpha = config['lora_alpha']
  for pattern, value in (config.get('alpha_pattern') or {}).items():
    if re.fullmatch(rf'(.*\.)?({pattern})', module):
      alpha = value
      break
  return alpha / (rank**0.5 if config.get('use_rslora') else rank)


def _read(folder: pathlib.Path):
  """(config, tensors) of an adapter, checked to be plain LoRA."""
  for name in (CONFIG, WEIGHTS):
    if not (folder / name).is_file():
      raise ValueError(
        f'--lora.init={folder} has no {name}; allowed: a folder as PEFT writes '
        'it with save_pretrained.'
      )
  config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
  for key, usual in _USUAL.items():
    if config.get(key, usual) not in (usual, None):
      raise ValueError(
        f'--lora.init={folder} has {key}={config[key]!r}; allowed: {usual!r}, '
        'plain LoRA.'
      )
  with safetensors.safe_open(folder / WEIGHTS, 'numpy') as f:
    tensors = {name: f.get_tensor(name) for name in f.keys()}
  return config, {k: v.astype(np.float32) for k, v in tensors.items()}


def _kernels(known: list[Place]) -> str:
  return ', '.join(dict.fromkeys(p.module for p in known))


def write_tensors(path: pathlib.Path, tensors: Mapping[str, Any]) -> None:
  """Writes a safetensors file that is there whole or not at all."""
  whole = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  data = safetensors.numpy.save(whole, {'format': 'pt'})
  _replace(path, lambda p: p.write_bytes(data))


def _replace(path: pathlib.Path, write) -> None:
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  write(temporary)
  os.replace(temporary, path)
