"""Hugging Face folders <-> our parameters: `config.json` and `*.safetensors`.

Loading is renaming, transposition and stacking. Tensors are read one at a
time and written into their place of the stacked array on the device, so that
the host never holds more than the model and one tensor.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from fedms_jax.core.types import Tree
from fedms_jax.models import renaming
from fedms_jax.models.family import Model
from fedms_jax.models.renaming import Piece
from fedms_jax.persistence import tensors
from fedms_jax.persistence.tensors import Tensor

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
SIDE_FILES = (
  'preprocessor_config.json',
  'tokenizer*.json',
  'special_tokens_map.json',
  'vocab.*',
  'merges.txt',
)
NO_PICKLES = (
  'Pickles (.bin, .pt, .ckpt) are not read: loading one runs the code in it. '
  'Convert it where you trust it, with transformers: '
  "AutoModel.from_pretrained(name).save_pretrained('folder') writes "
  'safetensors.'
)


class Checkpoint(NamedTuple):
  """A folder of a model. config, preprocessor: the JSON files of that name
  ({} without). tensors: by the names in the files."""

  folder: pathlib.Path
  config: dict[str, Any]
  preprocessor: dict[str, Any]
  tensors: dict[str, Tensor]


def find(name: str, *, revision: str = '', weights: bool = True) -> Checkpoint:
  """The checkpoint of a local folder or a hub id; nothing is read but headers.

  Downloads go through `huggingface_hub`, whose environment variables hold
  (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN). weights: whether the
  tensors are wanted; config.json alone describes a model.
  """
  folder = pathlib.Path(name).expanduser()
  if not folder.is_dir():
    folder = _download(name, revision, weights)
  config = _json(folder / 'config.json')
  if not config:
    raise ValueError(
      f'{folder} has no config.json; allowed: a folder as '
      '`save_pretrained` writes it.'
    )
  preprocessor = _json(folder / 'preprocessor_config.json')
  listed = _listed(folder) if weights else {}
  return Checkpoint(folder, config, preprocessor, listed)


def _download(name: str, revision: str, weights: bool) -> pathlib.Path:
  import huggingface_hub
  from huggingface_hub import errors

  if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?', name) or name.startswith('.'):
    raise ValueError(
      f'--model.name={name!r} is neither a folder nor a hub id; allowed: an '
      "existing folder, or an id such as 'openai/clip-vit-base-patch16'."
    )
  patterns = ['config.json', *SIDE_FILES]
  if weights:
    patterns += ['*.safetensors', INDEX]
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        name,
        revision=revision or None,
        allow_patterns=patterns,
        # The same weights again in the layout of their makers, or adapters.
        ignore_patterns=['*/*', 'consolidated*', 'adapter_model*'],
      )
    )
  except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
    raise ValueError(
      f'--model.name={name!r} is no folder here, and the hub gave nothing: '
      f'{error}'
    ) from error


def _json(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  return json.loads(path.read_text(encoding='utf-8'))


def _listed(folder: pathlib.Path) -> dict[str, Tensor]:
  index = _json(folder / INDEX).get('weight_map', {})
  files = sorted({folder / file for file in index.values()})
  absent = [file.name for file in files if not file.is_file()]
  if absent:
    raise ValueError(
      f'{folder / INDEX} lists files that are not there: {", ".join(absent)}. '
      'Complete the folder.'
    )
  if not files and (folder / WEIGHTS).is_file():
    files = [folder / WEIGHTS]
  if not files:
    raise ValueError(f'{folder} has no {WEIGHTS} and no {INDEX}. {NO_PICKLES}')
  return tensors.listed(files)


def _flat(tree: Tree) -> dict[str, Any]:
  return traverse.flatten_dict(tree, sep='/')


def _found(model: Model, checkpoint: Checkpoint) -> dict[str, Tensor]:
  """The tensors of a checkpoint by their full names."""
  full = renaming.full_names(model, checkpoint.tensors)
  return {full[name]: t for name, t in checkpoint.tensors.items()}


def _check(model: Model, checkpoint: Checkpoint, pieces, found) -> None:
  """Raises `ValueError` that lists missing, extra and wrong-shaped tensors."""
  wanted = {piece.tensor: piece.shape for piece in pieces}
  problems = {
    'missing': [f'{n} {list(s)}' for n, s in wanted.items() if n not in found],
    'wrong shape': [
      f'{found[n].name} {list(found[n].shape)}, the model has {list(s)}'
      for n, s in wanted.items()
      if n in found and found[n].shape != s
    ],
    'extra': [
      f'{t.name} {list(t.shape)}'
      for n, t in found.items()
      if n not in wanted and not renaming.ignored(model, n)
    ],
  }
  if any(problems.values()):
    lines = [
      f'  {kind}: {line}'
      for kind, names in problems.items()
      for line in [*names[:20], *_more(names[20:])]
    ]
    raise ValueError(
      f'the tensors in {checkpoint.folder} are not those that its config.json '
      'and the chosen head ask for:\n' + '\n'.join(lines)
    )


def _more(names: Sequence[str]) -> list[str]:
  return [f'... and {len(names)} more'] if names else []


def load(
  model: Model,
  checkpoint: Checkpoint,
  *,
  head: bool = False,
  given: dict[str, Any] | None = None,
  place: Callable[[str, Any], Any] | None = None,
) -> tuple[Tree, Tree | None]:
  """The parameters and, if wanted, the checkpoint's own head (else None).

  Args:
    model: what to load; its backbone says the types.
    checkpoint: where from.
    head: whether the head is wanted too.
    given: leaves by path that no file has, such as 'final/classes'.
    place: (path, shape and type) -> sharding or device; None: the default.

  Raises:
    ValueError: a tensor is missing, extra or of another shape; all are listed.
  """
  init = model.backbone.init
  if head:
    init = functools.partial(_with_head, model.backbone)
  leaves = _flat(jax.eval_shape(init, jax.random.key(0)))
  given = given or {}
  pieces = list(
    renaming.pieces(model, {k: v for k, v in leaves.items() if k not in given})
  )
  found = _found(model, checkpoint)
  _check(model, checkpoint, pieces, found)
  by_path: dict[str, list[Piece]] = {}
  for piece in pieces:
    by_path.setdefault(piece.path, []).append(piece)
  out = {}
  for path, shape in leaves.items():
    target = place(path, shape) if place else None
    if path in given:
      array = jnp.asarray(given[path], shape.dtype).reshape(shape.shape)
      out[path] = jax.device_put(array, target)
    else:
      out[path] = tensors.leaf(by_path[path], found, shape, target)
  params = _nested(out)
  return params, params.pop('head', {} if head else None)


def _with_head(backbone, key) -> Tree:
  return backbone.init(key) | {'head': backbone.init_head(key)}


def _nested(flat: dict[str, Any]) -> Tree:
  """The parameters of flat leaves; parts without a leaf are there, too."""
  empty = {'stem': {}, 'blocks': {}, 'final': {}}
  return empty | traverse.unflatten_dict(flat, sep='/')


def save(
  model: Model,
  params: Tree,
  folder: str | os.PathLike,
  source: Checkpoint,
  *,
  head: Tree | None = None,
  labels: Sequence[str] = (),
) -> None:
  """Writes a whole model as a Hugging Face folder.

  Args:
    model: what `params` belong to.
    params: with LoRA merged into the kernels, if there was any.
    folder: made if it is not there.
    source: the checkpoint that it came from; what is not in `params`, its
      config.json and the files of its tokenizer and preprocessor are copied.
    head: of a classification.
    labels: names of the classes, for config.json.
  """
  leaves = _flat(params) | _flat({'head': head} if head else {})
  if any(path.endswith('/kernel_scale') for path in leaves):
    raise ValueError(
      'an int8 model is not written: its rounding would be kept. Load the '
      'model with storage float32 or bfloat16 and merge there.'
    )
  out = _tensors_of(model, leaves)
  for name, tensor in _found(model, source).items():
    if name not in out:
      with safetensors.safe_open(tensor.file, 'numpy') as f:
        out[name] = f.get_tensor(tensor.name)
  config = dict(source.config)
  if labels:
    config['id2label'] = {str(i): name for i, name in enumerate(labels)}
    config['label2id'] = {name: i for i, name in enumerate(labels)}
  text = json.dumps(config, indent=2) + '\n'
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for pattern in SIDE_FILES:
    for file in source.folder.glob(pattern):
      if file.parent.resolve() != folder.resolve():
        _write_file(folder / file.name, functools.partial(shutil.copy, file))
  _write_file(
    folder / WEIGHTS,
    lambda path: safetensors.numpy.save_file(out, path, {'format': 'pt'}),
  )
  _write_file(folder / 'config.json', lambda path: path.write_text(text))


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
    part, parts = piece.name.part
    target = out[piece.tensor]
    if parts > 1:
      size = row.shape[-1]
      target = target[..., part * size : (part + 1) * size]
    target[...] = row
  return out


def _write_file(path: pathlib.Path, write: Callable) -> None:
  """Writes under a temporary name first: a file is whole or absent."""
  temporary = path.with_name(f'.{path.name}.tmp')
  write(temporary)
  os.replace(temporary, path)
