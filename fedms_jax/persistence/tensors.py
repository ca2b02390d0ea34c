"""Tensors of safetensors files, read part by part into arrays on a device."""

from __future__ import annotations

import contextlib
import functools
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from fedms_jax.models import renaming, storages
from fedms_jax.models.renaming import Piece
from fedms_jax.persistence import json_files

PART = 1 << 20  # values that are read at a time
FLOATS = ('F64', 'F32', 'F16', 'BF16')
# What else a file may hold, such as positions and masks.
OTHERS = ('I64', 'I32', 'I16', 'I8', 'U8', 'BOOL')


class Tensor(NamedTuple):
  """A tensor in a file; not read yet. dtype: as safetensors names it."""

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: str = 'F32'


@contextlib.contextmanager
def opened(file: pathlib.Path):
  """An open safetensors file; what is wrong with it is a `ValueError`."""
  try:
    with safetensors.safe_open(file, 'numpy') as f:
      yield f
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(_damage(file, error)) from error


def _damage(file: pathlib.Path, error: Exception) -> str:
  """What is wrong with a file, and what to do."""
  try:
    with file.open('rb') as f:
      start = f.read(100)
  except OSError as cause:
    return f'{file} cannot be read: {cause.strerror or cause}.'
  if json_files.is_pointer(start):
    return f'{file} {json_files.FETCH}.'
  if not start:
    return f'{file} is empty. Fetch it again.'
  if start.startswith((b'PK\x03\x04', b'\x80')):
    return (
      f'{file} is a pickle of PyTorch under the name of safetensors, and '
      'pickles are not read: loading one runs the code in it. Convert it '
      'where you trust it.'
    )
  return f'{file} is damaged: {error}. Fetch it again.'


def listed(files: Iterable[pathlib.Path]) -> dict[str, Tensor]:
  """The tensors of these files; their headers alone are read."""
  out = {}
  for file in files:
    with opened(file) as f:
      for name in f.keys():
        part = f.get_slice(name)
        dtype = part.get_dtype()
        if dtype not in (*FLOATS, *OTHERS):
          raise ValueError(
            f'{file}: {name} is of type {dtype}; allowed: '
            f'{", ".join(FLOATS)}. Use the checkpoint that was not quantized.'
          )
        out[name] = Tensor(file, name, tuple(part.get_shape()), dtype)
  return out


def read(tensor: Tensor) -> np.ndarray:
  """The whole tensor."""
  with opened(tensor.file) as f:
    return f.get_tensor(tensor.name)


def equal(one: Tensor, other: Tensor) -> bool:
  """Whether two tensors hold the same values; read part by part."""
  if one.shape != other.shape:
    return False
  box = [slice(0, size) for size in one.shape]
  return all(
    np.array_equal(_part(one, own), _part(other, own)) for own in _rows(box)
  )


def leaf(pieces: Sequence[Piece], found, shape, target):
  """One leaf on its device, filled in place.

  found: tensors by full name. shape: of the leaf, with its type. target: a
  device or sharding, None for the default.
  """
  out = jnp.zeros(shape.shape, shape.dtype, device=target)
  for piece in pieces:
    first = () if piece.block is None else (piece.block,)
    for start, part in _read(piece, found[piece.tensor], shape.dtype):
      part = part[None] if first else part
      # Waiting bounds how many parts are on their way at a time.
      out = jax.block_until_ready(_write(out, part, (*first, *start)))
  return out


@functools.partial(jax.jit, donate_argnums=0)
def _write(leaf, part, start):
  """Writes into the leaf itself: it is donated."""
  return jax.lax.dynamic_update_slice(leaf, part, start)


def _read(piece: Piece, tensor: Tensor, dtype) -> Iterator[tuple]:
  """(where it starts in our layout, part) for the parts of a tensor.

  The file is opened for each part, so that no more than one part's pages stay
  mapped.
  """
  unit = piece.path.endswith('/kernel_scale')
  quantized = unit or dtype == jnp.int8
  axes = piece.name.axes or tuple(range(len(tensor.shape)))
  box = renaming.box(piece.name, tensor.shape)
  for own in [box] if quantized else _rows(box):
    array = _part(tensor, own).transpose(axes)
    if quantized:
      array = storages.quantize(array.astype(np.float32), np)[unit]
    start = [own[axis].start - box[axis].start for axis in axes]
    yield start[:-1] if unit else start, array.astype(dtype, copy=False)


def _part(tensor: Tensor, box: Sequence[slice]) -> np.ndarray:
  with opened(tensor.file) as f:
    if not box:
      return f.get_tensor(tensor.name)
    return f.get_slice(tensor.name)[tuple(box)]


def _rows(box: list[slice]) -> Iterator[list[slice]]:
  """Runs of rows of a box, of about `PART` values; vectors stay whole."""
  if len(box) < 2:
    yield box
    return
  first, *rest = box
  step = max(1, PART // math.prod(s.stop - s.start for s in rest))
  for start in range(first.start, first.stop, step):
    yield [slice(start, min(start + step, first.stop)), *rest]
