"""Formats of data sets that `datasets` does not read, as splits of it.

- LEAF (arXiv 1812.01097): JSON of `users`, `num_samples` and `user_data`;
  columns x, y and user. Lists of numbers are square gray images.
- idx, the format of MNIST, EMNIST and Fashion-MNIST: `*-images-idx3-ubyte` and
  `*-labels-idx1-ubyte`, also `.gz`; train, and t10k or test.
- NumPy's .npz: x_train, y_train, x_test, y_test (Keras); train_images,
  train_labels, ... (MedMNIST); or images and labels.
"""

from __future__ import annotations

import gzip
import json
import math
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from fedms_jax.data import answers, files

MOST = 1 << 36  # bytes of a file, once it is unpacked
_LEAF = re.compile(r'\s*\{\s*"(users|user_data|num_samples|hierarchies)"')
_IDX = re.compile(r'(.*)(images|labels)[-.]idx([13])-ubyte(\.gz)?')
_TEST = re.compile(r'(^|[^a-z0-9])(t10k|test|testing)([^a-z0-9]|$)')
_NAMES = {
  'inputs': ('x', 'images', 'image', 'data', 'X'),
  'labels': ('y', 'labels', 'label', 'targets'),
}
_SPLITS = {'train': 'train', 'test': 'test', 'val': 'validation'}


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """The splits of a file or folder; None if it is in none of these formats.

  Raises:
    ValueError: a file of such a format that is torn or says nonsense.
  """
  inside = sorted(path.rglob('*')) if path.is_dir() else [path]
  found = [p for p in inside if p.is_file()]
  for wanted, reader in ((is_leaf, _leaf), (_is_idx, _idx), (_is_npz, _npz)):
    of_this = [p for p in found if wanted(p)]
    if of_this:
      return reader(of_this, path)
  return None


def is_leaf(path: pathlib.Path) -> bool:
  """Whether a JSON file begins as those of LEAF do."""
  if path.suffix != '.json':
    return False
  with path.open(encoding='utf-8', errors='replace') as file:
    return _LEAF.match(file.read(256)) is not None


def _is_idx(path: pathlib.Path) -> bool:
  return _IDX.fullmatch(path.name) is not None


def _idx_name(path: pathlib.Path) -> tuple[str, str]:
  """What comes first in the name of an idx file; 'images' or 'labels'."""
  match = _IDX.fullmatch(path.name)
  assert match is not None
  return match[1], match[2]


def _is_npz(path: pathlib.Path) -> bool:
  return path.suffix == '.npz'


def _split(path: pathlib.Path, root: pathlib.Path) -> str:
  """The split that a file is of, by its name or that of its folder."""
  name = path.name if path == root else str(path.relative_to(root))
  return 'test' if _TEST.search(name.lower()) else 'train'


def _dataset(columns: dict[str, Any], where: str) -> Any:
  """A split of columns; arrays [M, H, W] and [M, H, W, C] are pixels."""
  import datasets

  counts = {name: len(values) for name, values in columns.items()}
  if len(set(counts.values())) > 1:
    said = ', '.join(f'{count} {name}' for name, count in counts.items())
    raise ValueError(f'{where} has {said}; allowed: as many of each.')
  types = {}
  for name, values in columns.items():
    if isinstance(values, np.ndarray) and values.ndim > 1:
      array = {3: datasets.Array2D, 4: datasets.Array3D}[values.ndim]
      types[name] = array(values.shape[1:], 'uint8')
    elif isinstance(values, list) and values and isinstance(values[0], list):
      whole = all(isinstance(x, int) for row in values for x in row)
      one = datasets.Value('int64' if whole else 'float64')
      types[name] = datasets.Sequence(one)
    else:
      one = values[0] if len(values) else 0
      kind = 'string' if isinstance(one, str) else 'int64'
      kind = 'float64' if isinstance(one, float) else kind
      types[name] = datasets.Value(kind)
  return datasets.Dataset.from_dict(columns, features=datasets.Features(types))


def pixels(values: np.ndarray, where: str) -> np.ndarray:
  """Images [M, H, W] or [M, H, W, C] as uint8; whole numbers from 0 to 255,
  or those over 255, from 0 to 1."""
  if values.ndim not in (3, 4):
    raise ValueError(
      f'{where} has the shape {values.shape}; allowed: images M x H x W, or '
      'M x H x W x 1 or 3.'
    )
  if values.dtype == np.uint8:
    return values
  if values.dtype.kind not in 'iuf':
    raise ValueError(f'{where} has {values.dtype} values; allowed: numbers.')
  low, high = values.min(initial=0), values.max(initial=0)
  scale = 255 if values.dtype.kind == 'f' and high <= 1 else 1
  with np.errstate(invalid='ignore'):
    whole = np.rint(values * scale)
    exact = np.abs(whole - values * scale).max(initial=0) < 1e-2
  if not (0 <= low <= high <= 255 and exact):
    raise ValueError(
      f'{where} has {values.dtype} values from {low:g} to {high:g}; allowed: '
      'whole numbers from 0 to 255, or k / 255. Undo what was done to the '
      'pixels, such as their normalization.'
    )
  return whole.astype(np.uint8)


def _numbers(values: np.ndarray, where: str) -> np.ndarray:
  """Labels [M] or [M, 1] as whole numbers, or as texts."""
  if values.ndim == 2 and values.shape[1] == 1:
    values = values[:, 0]
  if values.ndim != 1 or values.dtype.kind not in 'iubU':
    raise ValueError(
      f'{where} has {values.dtype} values of shape {values.shape}; allowed: '
      'one whole number or name a row.'
    )
  if values.dtype.kind == 'U':
    return values.tolist()
  return values.astype(np.int64)


def _labels(values: np.ndarray, where: str) -> np.ndarray | list:
  """Labels, or other answers that arrays may hold."""
  found = answers.of_array(values, where)
  return _numbers(values, where) if found is None else found


# LEAF


def _leaf(found: list[pathlib.Path], root: pathlib.Path) -> dict[str, Any]:
  rows: dict[str, dict[str, list]] = {}
  for path in found:
    part = rows.setdefault(_split(path, root), {'x': [], 'y': [], 'user': []})
    for user, x, y in _users(path):
      part['x'] += x
      part['y'] += y
      part['user'] += [user] * len(x)
  return {
    name: _dataset(
      {
        'x': _leaf_inputs(part['x'], f'x of the {name} split of {root}'),
        'y': _leaf_labels(part['y'], f'y of the {name} split of {root}'),
        'user': part['user'],
      },
      f'the {name} split of {root}',
    )
    for name, part in rows.items()
  }


def _users(path: pathlib.Path) -> Iterator[tuple[str, list, list]]:
  """Each user of a file, with inputs and labels."""
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    users, data = content['users'], content['user_data']
    for user in users:
      x, y = data[user]['x'], data[user]['y']
      if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
        raise ValueError(f'user {user!r} has not as many x as y')
      yield str(user), x, y
  except (KeyError, TypeError, ValueError, RecursionError) as error:
    said = f'{error} is not there' if isinstance(error, KeyError) else error
    raise ValueError(
      f'{path} is no whole file of LEAF: {said}. It needs users and '
      'user_data[user] with x and y.'
    ) from error


def _leaf_inputs(values: list, where: str) -> Any:
  """Texts as they are; lists of numbers as square gray images."""
  if all(isinstance(x, str) for x in values):
    return values
  try:
    array = np.asarray(values)
  except ValueError as error:
    raise ValueError(f'{where} has rows of different lengths.') from error
  if array.dtype.kind == 'U' and array.ndim == 2:
    raise ValueError(
      f'{where} has lists of {array.shape[1]} texts a row, as Sent140 has; '
      'allowed: one text. Keep the one that is the text.'
    )
  if array.ndim == 2:
    side = math.isqrt(array.shape[1])
    if side * side != array.shape[1]:
      raise ValueError(
        f'{where} has {array.shape[1]} numbers a row, which make no square '
        'image. Write them as H x W lists.'
      )
    array = array.reshape(-1, side, side)
  return pixels(array, where)


def _leaf_labels(values: list, where: str) -> Any:
  if all(isinstance(y, str) for y in values):
    return values
  try:
    return _numbers(np.asarray(values), where)
  except ValueError as error:
    raise ValueError(f'{where} has no labels: {error}') from error


# idx


def _idx(found: list[pathlib.Path], root: pathlib.Path) -> dict[str, Any]:
  parts: dict[str, dict[str, pathlib.Path]] = {}
  for path in found:
    what = _idx_name(path)[1]
    part = parts.setdefault(_split(path, root), {})
    if what in part:
      raise ValueError(
        f'{root} has several files of {what} of one split: {part[what].name} '
        f'and {path.name}. Keep one of them in the folder.'
      )
    part[what] = path
  if root.is_file() and len(found) == 1:
    parts = {'train': _pair(found[0])}
  out = {}
  for name, part in parts.items():
    lacking = {'images', 'labels'} - set(part)
    if lacking:
      raise ValueError(
        f'{root} has no idx file of the {lacking.pop()} of its {name} split.'
      )
    columns = {
      'image': pixels(_array(part['images']), str(part['images'])),
      'label': _numbers(_array(part['labels']), str(part['labels'])),
    }
    out[name] = _dataset(columns, f'the {name} split of {root}')
  return out


def _pair(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """The files of images and of labels that lie beside each other."""
  out = {}
  for beside in sorted(path.parent.iterdir()):
    if _is_idx(beside) and _idx_name(beside)[0] == _idx_name(path)[0]:
      files.check_openable(beside)
      out.setdefault(_idx_name(beside)[1], beside)
  return out


def _array(path: pathlib.Path) -> np.ndarray:
  """The uint8 array of an idx file: 0, 0, 8, dimensions; sizes; values."""
  opened = gzip.open if path.suffix == '.gz' else open
  try:
    with opened(path, 'rb') as file:
      head = file.read(4)
      if head[:3] != b'\0\0\x08' or head[3] not in (1, 3):
        raise ValueError('its head is not that of unsigned bytes')
      shape = np.frombuffer(file.read(4 * head[3]), '>u4').tolist()
      size = math.prod(shape)
      if len(shape) != head[3] or size > MOST:
        raise ValueError(f'it says that its shape is {shape}')
      data = file.read(size + 1)
  except (EOFError, OSError, ValueError) as error:
    raise ValueError(f'{path} is no whole idx file: {error}.') from error
  if len(data) != size:
    more = 'more' if len(data) > size else len(data)
    raise ValueError(
      f'{path} is no whole idx file: it has {more} bytes of {size}.'
    )
  return np.frombuffer(data, np.uint8).reshape(shape)


# npz


def _npz(found: list[pathlib.Path], root: pathlib.Path) -> dict[str, Any]:
  if len(found) > 1:
    names = ', '.join(path.name for path in found[:3])
    raise ValueError(f'{root} has several .npz files: {names}. Name one.')
  path = found[0]
  try:
    with zipfile.ZipFile(path) as archive:
      size = sum(entry.file_size for entry in archive.infolist())
      if size > MOST:
        raise ValueError(f'it unpacks to {size} bytes; allowed: {MOST}')
    with np.load(path, allow_pickle=False) as arrays:
      return _of_arrays(arrays, path)
  except (EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path} is no whole .npz file: {error}.') from error
  except (MemoryError, ValueError) as error:
    said = str(error).rstrip('.')
    raise ValueError(f'{path} cannot be read: {said}.') from error


def _of_arrays(arrays, path: pathlib.Path) -> dict[str, Any]:
  """The splits of arrays, by their names."""
  out = {}
  for short, name in _SPLITS.items():
    x, y = (_named(arrays, short, role) for role in ('inputs', 'labels'))
    if x is not None and y is not None:
      columns = {
        'image': pixels(arrays[x], f'array {x!r}'),
        'label': _labels(arrays[y], f'array {y!r}'),
      }
      out[name] = _dataset(columns, f'{path} ({x}, {y})')
  if not out:
    raise ValueError(
      f'its arrays are {", ".join(arrays.files) or "none"}; allowed: x_train '
      'and y_train, train_images and train_labels, or images and labels'
    )
  return out


def _named(arrays, split: str, role: str) -> str | None:
  """The array of a split's inputs or labels; train's may go without it."""
  for base in _NAMES[role]:
    bare = (base,) if split == 'train' else ()
    for name in (f'{base}_{split}', f'{split}_{base}', *bare):
      if name in arrays.files:
        return name
  return None
