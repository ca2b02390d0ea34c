"""A whole model as a Hugging Face folder, as transformers reads it."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Any

import flax.traverse_util as traverse
import numpy as np
import safetensors.numpy

from fedms_jax.core.types import Tree
from fedms_jax.models import renaming
from fedms_jax.models.family import Model
from fedms_jax.persistence import model_files, tensors
from fedms_jax.persistence.files import write_atomic, write_whole
from fedms_jax.persistence.model_files import SIDE_FILES, WEIGHTS, Checkpoint

# In config.json of a classifier; another model has none of them.
_OF_LABELS = ('id2label', 'label2id', 'num_labels', '_num_labels')


def save(
  model: Model,
  params: Tree,
  folder: str | os.PathLike,
  source: Checkpoint,
  *,
  head: Tree | None = None,
  labels: Sequence[str] = (),
  problem: str = '',
) -> None:
  """Writes a whole model as a Hugging Face folder.

  Heads of the source are left out: they belong to its weights. A head of ours
  is written where a class of transformers puts it on the same feature.

  Args:
    model: what `params` belong to.
    params: with LoRA merged into the kernels, if there was any.
    folder: made if it is not there.
    source: the checkpoint that it came from; what is not in `params`, its
      config.json and the files of its tokenizer and preprocessor are copied.
    head: of a classification.
    labels: names of the classes, for config.json. problem: its problem_type,
      as transformers names them, where that is not one label a row.

  Raises:
    ValueError: no class of transformers has this head on this feature.
  """
  _check_head(model, head)
  leaves = {'/'.join(k): x for k, x in traverse.flatten_dict(params).items()}
  leaves |= {f'head/{k}': x for k, x in (head or {}).items()}
  _check_storage(leaves)
  out = _tensors_of(model, leaves)
  for name, tensor in model_files.named(model, source).items():
    if name not in out and not _stale(model, name):
      out[name] = tensors.read(tensor)
  if head and not labels:
    labels = [f'LABEL_{i}' for i in range(head['kernel'].shape[-1])]
  config = _config(model, source.config, out, labels if head else ())
  if head and problem:
    config['problem_type'] = problem
  text = json.dumps(config, indent=2) + '\n'
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  _copy_side_files(source.folder, folder)
  write_whole(  # by name: the bytes of a large model are not held twice
    folder / WEIGHTS,
    lambda file: safetensors.numpy.save_file(out, file.name, {'format': 'pt'}),
  )
  write_atomic(folder / 'config.json', text)


def _check_head(model: Model, head: Tree | None) -> None:
  if head and not model.reference:
    raise ValueError(
      'no class of transformers has a linear layer on this feature; a head '
      'beside it would be put on another one.'
    )


def _check_storage(leaves: Collection[str]) -> None:
  if any(path.endswith('/kernel_scale') for path in leaves):
    raise ValueError(
      'an int8 model is not written: its rounding would be kept. Load the '
      'model with storage float32 or bfloat16 and merge there.'
    )


def _copy_side_files(source: pathlib.Path, folder: pathlib.Path) -> None:
  for pattern in SIDE_FILES:
    for file in source.glob(pattern):
      if file.parent.resolve() != folder.resolve():
        data = file.read_bytes()
        write_whole(folder / file.name, lambda out, data=data: out.write(data))


def _stale(model: Model, name: str) -> bool:
  """Whether a tensor of the source belongs to its own weights alone."""
  patterns = (*model.heads, *map(re.escape, model.tied))
  return any(re.fullmatch(pattern, name) for pattern in patterns)


def _config(
  model: Model,
  source: dict[str, Any],
  written: dict[str, np.ndarray],
  labels: Sequence[str],
) -> dict[str, Any]:
  """The config.json of what is written: its class, type and labels."""
  dropped = (*_OF_LABELS, 'architectures', 'problem_type', 'torch_dtype')
  config = {k: v for k, v in source.items() if k not in dropped}
  if model.reference or model.featured != 'AutoModel':
    config['architectures'] = [model.reference or model.featured]
  if labels:
    config['id2label'] = {str(i): name for i, name in enumerate(labels)}
    config['label2id'] = {name: i for i, name in enumerate(labels)}
  # transformers casts all tensors to this type: the widest loses nothing.
  kinds = [x.dtype for x in written.values() if x.dtype.kind in 'fV']
  dtype = str(max(kinds, key=lambda d: d.itemsize)) if kinds else 'float32'
  config['dtype'] = dtype
  for key in ('dtype', 'torch_dtype'):
    for part in ('text_config', 'vision_config'):
      if key in (source.get(part) or {}):
        config[part] = config[part] | {key: dtype}
  if 'torch_dtype' in source:  # of older versions
    config['torch_dtype'] = dtype
  return config


def _tensors_of(model: Model, leaves: dict[str, Any]) -> dict[str, np.ndarray]:
  """Our leaves as the tensors of a file; leaves that no file has are left."""
  named = {
    path: np.asarray(leaf)
    for path, leaf in leaves.items()
    if renaming.source(model, path) is not None
  }
  out: dict[str, np.ndarray] = {}
  for piece in renaming.pieces(model, named):
    row = named[piece.path]
    row = row if piece.block is None else row[piece.block]
    if piece.name.axes:
      row = row.transpose(np.argsort(piece.name.axes))
    if piece.tensor not in out:
      out[piece.tensor] = np.empty(piece.shape, row.dtype)
    out[piece.tensor][tuple(renaming.box(piece.name, piece.shape))] = row
  return out
