"""Hugging Face folders <-> our parameters: `config.json` and `*.safetensors`.

Loading is renaming, transposition and stacking. Tensors are read one at a
time and written into their place of the stacked array on the device, so that
the host never holds more than the model and one tensor.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.traverse_util as traverse
import jax
import jax.numpy as jnp

from fedms_jax.cluster import memory
from fedms_jax.core.types import Tree
from fedms_jax.models import preprocessors, renaming
from fedms_jax.models.family import Model
from fedms_jax.models.renaming import Piece
from fedms_jax.persistence import json_files, tensors
from fedms_jax.persistence.tensors import FLOATS, Tensor
from fedms_jax.systems.units import in_bytes

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
PREPROCESSOR = 'preprocessor_config.json'
PROCESSOR = 'processor_config.json'  # of several parts, since transformers 5
TOKENIZER = 'tokenizer_config.json'
ADDED = 'added_tokens.json'  # of old files; now part of TOKENIZER
SIDE_FILES = (
  PREPROCESSOR,
  PROCESSOR,
  'tokenizer*.json',
  ADDED,
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
  """A folder of a model. config: its config.json. preprocessor: what is done
  to images, in the words of `preprocessors.completed` ({} where no file says).
  tensors: by the names in the files. tokenizer: tokenizer_config.json ({}
  without), with the ids of added_tokens.json under that name."""

  folder: pathlib.Path
  config: dict[str, Any]
  preprocessor: dict[str, Any]
  tensors: dict[str, Tensor]
  tokenizer: dict[str, Any] = {}


def find(name: str, *, revision: str = '', weights: bool = True) -> Checkpoint:
  """The checkpoint of a local folder or a hub id; nothing is read but headers.

  Downloads go through `huggingface_hub`, whose environment variables hold
  (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN). weights: whether the
  tensors are wanted; config.json alone describes a model.
  """
  folder = pathlib.Path(name).expanduser()
  if not folder.is_dir():
    folder = _download(name, revision, weights)
  config = json_files.read(folder / 'config.json')
  if not config:
    raise ValueError(
      f'{folder} has no config.json; allowed: a folder as '
      '`save_pretrained` writes it.'
    )
  listed = _listed(folder) if weights else {}
  tokenizer = json_files.read(folder / TOKENIZER)
  if added := json_files.read(folder / ADDED):
    tokenizer[ADDED] = added
  preprocessor = _preprocessor(folder, config.get('model_type'))
  return Checkpoint(folder, config, preprocessor, listed, tokenizer)


def _preprocessor(folder: pathlib.Path, kind: Any) -> dict[str, Any]:
  """As transformers 5 has it: the newer file holds if it has such a part."""
  path = folder / PROCESSOR
  found = json_files.read(path).get('image_processor')
  if found is None:
    path = folder / PREPROCESSOR
    found = json_files.read(path)
  if not isinstance(found, dict):
    raise ValueError(
      f'{path} has image_processor={found!r}; allowed: an object. Fetch the '
      'file again.'
    )
  if not found or str(kind) not in preprocessors.OF_MODEL:
    return {}
  return preprocessors.completed(found, kind, str(path))


def _download(name: str, revision: str, weights: bool) -> pathlib.Path:
  import huggingface_hub
  from huggingface_hub import errors

  if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?', name) or name.startswith('.'):
    raise ValueError(
      f'the model {name!r} is neither a folder nor a hub id; allowed: an '
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
      f'the model {name!r} is no folder here, and the hub gave nothing: {error}'
    ) from error


def _listed(folder: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a folder. A whole file comes first, as in transformers: an
  index beside it is left from an earlier save in parts."""
  if (folder / WEIGHTS).is_file():
    return tensors.listed([folder / WEIGHTS])
  index = _index(folder / INDEX)
  files = sorted({folder / file for file in index.values()})
  absent = [file.name for file in files if not file.is_file()]
  if absent:
    raise ValueError(
      f'{folder / INDEX} lists files that are not there: {", ".join(absent)}. '
      'Complete the folder.'
    )
  if not files:
    raise ValueError(f'{folder} has no {WEIGHTS} and no {INDEX}. {NO_PICKLES}')
  parts = {file.name: tensors.listed([file]) for file in files}
  lost = [name for name, file in index.items() if name not in parts[file]]
  if lost:
    raise ValueError(
      f'{folder / INDEX} says that {index[lost[0]]} has {lost[0]}, which it '
      'has not. Fetch the folder again.'
    )
  return {name: parts[file][name] for name, file in index.items()}


def _index(path: pathlib.Path) -> dict[str, str]:
  """Which tensor is in which file of the folder."""
  index = json_files.read(path).get('weight_map', {})
  names = index.values() if isinstance(index, dict) else [index]
  for name in names:
    # A name with a folder in it could be any file of the machine.
    if not isinstance(name, str) or not re.fullmatch(
      r'\w[\w.-]*\.safetensors', name
    ):
      raise ValueError(
        f'{path} lists {name!r}; allowed: names of .safetensors files in the '
        'same folder. Fetch the folder again.'
      )
  return index


def _flat(tree: Tree) -> dict[str, Any]:
  return traverse.flatten_dict(tree, sep='/')


def named(model: Model, checkpoint: Checkpoint) -> dict[str, Tensor]:
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
    'wrong type': [
      f'{found[n].name} {found[n].dtype}; allowed: {", ".join(FLOATS)}'
      for n in wanted
      if n in found and found[n].dtype not in FLOATS
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


def _check_tied(model: Model, checkpoint, pieces, found) -> None:
  """Raises `ValueError` where a file repeats a tensor with other values, so
  that it is not clear which of them is the model's."""
  used = {piece.tensor for piece in pieces}
  for name, source in model.tied.items():
    if name not in found or name in used or source not in used:
      continue
    if not tensors.equal(found[name], found[source]):
      raise ValueError(
        f'{checkpoint.folder} has {name} beside {source}, with other values, '
        'although they are tied. Write "tie_word_embeddings": false into its '
        'config.json, or remove one of them.'
      )


def _check_memory(checkpoint: Checkpoint, leaves: dict[str, Any]) -> None:
  """Raises `ValueError` if the model does not fit, before it is read."""
  size = sum(x.size * x.dtype.itemsize for x in leaves.values())
  free = memory.device()
  if size > free:
    raise ValueError(
      f'the model in {checkpoint.folder} takes {in_bytes(size)}, and '
      f'{in_bytes(free)} are free. Choose a smaller one, or another '
      '`Options.storage`.'
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
  found = named(model, checkpoint)
  _check(model, checkpoint, pieces, found)
  _check_tied(model, checkpoint, pieces, found)
  if place is None:
    _check_memory(checkpoint, leaves)
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
