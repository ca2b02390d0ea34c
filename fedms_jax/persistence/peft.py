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
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

from fedms_jax.core import tree
from fedms_jax.core.types import Tree
from fedms_jax.models import labels as label_names
from fedms_jax.models.family import Model
from fedms_jax.persistence import adapter_config, peft_heads
from fedms_jax.persistence import tensors as files
from fedms_jax.persistence.adapter_config import CONFIG
from fedms_jax.persistence.files import write_atomic, write_whole
from fedms_jax.persistence.peft_names import (
  ROOT,
  Place,
  all_targets,
  places,
  short_names,
  source,
  spellings,
)

WEIGHTS = 'adapter_model.safetensors'
LABELS = 'labels'  # in the metadata of a file with a head


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
  labels: Sequence[str] = (),
  bare: bool = False,
  frozen: Mapping[str, np.ndarray] | None = None,
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
    labels: the names of its outputs.
    bare: name the modules as in the model without a head.
    frozen: see `frozen_beside`.
  """
  if head and not model.reference:
    raise ValueError('no class of transformers has this head on this feature.')
  found = places(model, _targets(lora))
  tensors, ranks, names = _named(model, tree.flat(lora), found, bare)
  config = {
    'peft_type': 'LORA',
    'task_type': task,
    'base_model_name_or_path': base,
    'r': rank,
    'lora_alpha': alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'target_modules': short_names(names, modules, model.prefix),
    'rank_pattern': {k: count * rank for k, count in ranks.items()},
    'alpha_pattern': {k: count * alpha for k, count in ranks.items()},
    'fan_in_fan_out': _is_conv1d(model, found),
    'inference_mode': True,
    'modules_to_save': None,
  }
  if head:
    module, leaves = peft_heads.written(model, head)
    config['modules_to_save'] = [module]
    tensors |= {f'{ROOT}{module}.{k}': x for k, x in leaves.items()}
    tensors |= {f'{ROOT}{k}': x for k, x in (frozen or {}).items()}
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_tensors(folder / WEIGHTS, tensors, labels if head else ())
  write_atomic(folder / CONFIG, json.dumps(config, indent=2) + '\n')


def _named(model: Model, flat, found: Sequence[Place], bare: bool):
  """(tensors by name in the file, multiple of the rank by module where several
  places share one, names of the modules)."""
  tensors, ranks, names = {}, {}, set()
  for module in dict.fromkeys(p.module for p in found):
    shared = sorted(
      (p for p in found if p.module == module), key=lambda p: p.part
    )
    blocks = len(flat[f'{shared[0].target}/a'])
    for block in range(blocks):
      a, b = _joined(flat, shared, block)
      for name in spellings(model, shared[0].of(block), bare):
        tensors[f'{ROOT}{name}.lora_A.weight'] = a
        tensors[f'{ROOT}{name}.lora_B.weight'] = b
        names.add(name)
    if len(shared) > 1:
      ranks[module.partition('{}.')[2]] = len(shared)
  return tensors, ranks, names


def load(
  folder: str | os.PathLike,
  model: Model,
  start: Tree,
  *,
  scale: float,
  labels: Sequence[str] = (),
  frozen: Mapping[str, np.ndarray] | None = None,
) -> tuple[Tree, Tree | None]:
  """An adapter as stacked LoRA, and its head if it has one.

  Args:
    folder: as PEFT or `save` writes it.
    model: which module is which.
    start: LoRA of the wanted targets and rank; blocks that the adapter leaves
      out stay as they are here.
    scale: alpha / R of the result; a B that was trained under another scale
      is multiplied so that the model is the same.
    labels: the classes of the data, in whose order the head comes back where
      the file names its own.
    frozen: what the adapter may repeat of the base, see `frozen_beside`.

  Raises:
    ValueError: the adapter is no plain LoRA, or has other targets or another
      rank than `start`.
  """
  config, tensors, outputs = _read(pathlib.Path(folder))
  where = f'the adapter in {folder}'
  known = places(model, all_targets(model))
  out = {name: np.array(x) for name, x in tree.flat(start).items()}
  for module, pairs in _by_module(model, known).items():
    names = [f'{ROOT}{module}.lora_{x}.weight' for x in 'AB']
    if not all(name in tensors for name in names):
      continue
    a, b = (tensors.pop(name) for name in names)
    _check_rank(len(a), config.rank(module), f'{where} has', module)
    _spread(out, pairs, a, b * (config.scale(module) / scale), where)
  for name, value in (frozen or {}).items():
    if np.array_equal(tensors.get(ROOT + name, np.nan), value):
      del tensors[ROOT + name]
  head = peft_heads.taken(model, tensors)
  if head:
    peft_heads.check(model, head, where)
    order = label_names.order(outputs, labels, where) if labels else slice(None)
    head = {key: x[..., order] for key, x in head.items()}
  _check_empty(tensors, known, where)
  return tree.nested(out), head


def _check_rank(found: int, said: int, where: str, module: str) -> None:
  if found != said:
    raise ValueError(
      f'{where} tensors of rank {found} at {module}, and its {CONFIG} says '
      f'{said}. Fetch it again.'
    )


def _check_empty(tensors, known: Sequence[Place], where: str) -> None:
  if tensors:
    shown = ', '.join(sorted(tensors)[:5])
    raise ValueError(
      f'{where} adapts what this model has not, or what is not supported: '
      f'{shown}. Adapt linear layers of its blocks: {_kernels(known)}.'
    )


def _by_module(model: Model, known: Sequence[Place]) -> dict[str, list]:
  """(place, block) of all whose LoRA a module may hold, by its names."""
  out: dict[str, list] = {}
  for place in known:
    for block in range(model.backbone.blocks):
      for name in spellings(model, place.of(block)):
        out.setdefault(name, []).append((place, block))
        if model.prefix:
          bare = name.removeprefix(model.prefix)
          out.setdefault(bare, []).append((place, block))
  return out


def _spread(out, pairs: list, a, b, where: str) -> None:
  """Gives each place of one module its part of B; a place that is not asked for
  must have none."""
  for place, block in pairs:
    piece = b[place.part.along(len(b))]
    if f'{place.target}/a' in out:
      others = [p for p, _ in pairs if f'{p.target}/a' in out]
      order = sorted(p.part for p in others).index(place.part)
      _fill(out, place, block, a, piece, order, where)
    elif piece.any():
      raise ValueError(
        f'{where} adapts {place.target} too. Add it to `Spec.targets`.'
      )


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
    if place.part.of == 1 or len(a) < own.stop or not apart:
      raise ValueError(
        f'{where} has rank {len(a)} at {target}, not `Spec.rank`={rank}. Give '
        f'`Spec.rank`={len(a)}.'
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
  own = shared[0].part
  b = np.zeros((size // own.count * own.of, rank * len(shared)), np.float32)
  for i, (place, (_, piece)) in enumerate(zip(shared, pieces, strict=True)):
    b[place.part.along(len(b)), i * rank : (i + 1) * rank] = piece
  return np.concatenate([a for a, _ in pieces]), b


def _targets(lora: Tree) -> list[str]:
  return [
    name.removesuffix('/a') for name in tree.flat(lora) if name.endswith('/a')
  ]


def _is_conv1d(model: Model, found: list[Place]) -> bool:
  """Whether the files keep these kernels as [d_in, d_out]."""
  return not source(model, f'blocks/{found[0].target}/kernel').axes


def _read(folder: pathlib.Path):
  """(config, tensors, names of the head's outputs) of an adapter."""
  for name in (CONFIG, WEIGHTS):
    if not (folder / name).is_file():
      raise ValueError(
        f'the adapter {folder} has no {name}; allowed: a folder as PEFT writes '
        'it with save_pretrained.'
      )
  config = adapter_config.read(folder)
  if config.unread:
    print(
      f'fedms: note: {folder / CONFIG} has settings that are not known here '
      f'and are left aside: {", ".join(config.unread)}',
      file=sys.stderr,
    )
  found = files.listed([folder / WEIGHTS])
  for name, tensor in found.items():
    if tensor.dtype not in files.FLOATS:
      raise ValueError(
        f'{tensor.file}: {name} is of type {tensor.dtype}; allowed: '
        f'{", ".join(files.FLOATS)}.'
      )
  with files.opened(folder / WEIGHTS) as f:
    said = (f.metadata() or {}).get(LABELS, '[]')
  try:
    outputs = tuple(map(str, json.loads(said)))
  except (ValueError, TypeError, RecursionError) as error:
    raise ValueError(
      f'{folder / WEIGHTS} has {LABELS}={said[:80]!r} in its metadata; '
      'allowed: a list of names. Export it again.'
    ) from error
  arrays = {k: files.read(t).astype(np.float32) for k, t in found.items()}
  return config, arrays, outputs


def _kernels(known: Sequence[Place]) -> str:
  return ', '.join(dict.fromkeys(p.module for p in known))


def write_tensors(
  path: pathlib.Path, tensors: Mapping[str, Any], labels: Sequence[str] = ()
) -> None:
  """Writes a safetensors file that is there whole or not at all. labels: the
  names of a head's outputs."""
  whole = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  said = {LABELS: json.dumps(list(labels))} if labels else {}
  data = safetensors.numpy.save(whole, {'format': 'pt'} | said)
  write_whole(path, lambda file: file.write(data))
