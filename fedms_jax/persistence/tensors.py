"""Tensors of safetensors files, read part by part into arrays on a device."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from fedms_jax.models import family
from fedms_jax.models.renaming import Piece

PART = 1 << 20  # values that are read at a time


class Tensor(NamedTuple):
  """A tensor in a file; not read yet."""

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]


def listed(files: Iterable[pathlib.Path]) -> dict[str, Tensor]:
  """The tensors of these files; their headers alone are read."""
  out = {}
  for file in files:
    with safetensors.safe_open(file, 'numpy') as f:
      for name in f.keys():
        out[name] = Tensor(file, name, tuple(f.get_slice(name).get_shape()))
  return out


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
  box = [slice(0, size) for size in tensor.shape]
  number, pieces = piece.name.part
  if pieces > 1:
    size = tensor.shape[-1] // pieces
    box[-1] = slice(number * size, (number + 1) * size)
  for own in [box] if quantized else _rows(box):
    with safetensors.safe_open(tensor.file, 'numpy') as f:
      lazy = f.get_slice(tensor.name)
      array = lazy[tuple(own)] if own else f.get_tensor(tensor.name)
    array = array.transpose(axes)
    if quantized:
      array = family.quantize(array.astype(np.float32), np)[unit]
    start = [own[axis].start - box[axis].start for axis in axes]
    yield start[:-1] if unit else start, array.astype(dtype, copy=False)


def _rows(box: list[slice]) -> Iterator[list[slice]]:
  """Runs of rows of a box, of about `PART` values; vectors stay whole."""
  if len(box) < 2:
    yield box
    return
  first, *rest = box
  step = max(1, PART // math.prod(s.stop - s.start for s in rest))
  for start in range(first.start, first.stop, step):
    yield [slice(start, min(start + step, first.stop)), *rest]
