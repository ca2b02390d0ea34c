"""Our leaves and the tensors of files: which is which, and in what shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from fedms_jax.models.family import Model, Name

# What early files of BERT call the scale and bias of a norm.
_OLD_ENDINGS = {
  '.LayerNorm.gamma': '.LayerNorm.weight',
  '.LayerNorm.beta': '.LayerNorm.bias',
}


class Piece(NamedTuple):
  """One tensor's share of a leaf.

  path: of the leaf. tensor: its full name. block: the row of a stacked leaf,
  or None. shape: of the whole tensor in its file.
  """

  path: str
  tensor: str
  block: int | None
  shape: tuple[int, ...]
  name: Name


def source(model: Model, path: str) -> Name | None:
  """Where a leaf lies in the files; None if the family has no name for it."""
  layer, _, leaf = path.rpartition('/')
  if path in model.names:
    return _name(model.names[path])
  if leaf == 'kernel_scale':
    return source(model, f'{layer}/kernel')
  if layer not in model.names:
    return None
  name = _name(model.names[layer])
  kind = 'bias' if leaf == 'bias' else 'weight'
  axes = (1, 0) if leaf == 'kernel' else ()
  return name._replace(tensor=f'{name.tensor}.{kind}', axes=axes)


def _name(name: Name | str) -> Name:
  return name if isinstance(name, Name) else Name(name)


def pieces(model: Model, leaves: dict[str, Any]) -> Iterator[Piece]:
  """What leaves (by path, with shapes) consist of, leaf by leaf."""
  for path in leaves:
    name = source(model, path)
    if name is None:
      raise ValueError(
        f'no file of this family has {path!r}; give it to `load`, as '
        f'given={{{path!r}: array}}.'
      )
    # The unit of an int8 kernel is found from the whole kernel.
    whole = leaves[path.replace('/kernel_scale', '/kernel')].shape
    stacked = '{}' in name.tensor
    shape = _theirs(name, whole[1:] if stacked else whole)
    for block in range(whole[0]) if stacked else (None,):
      number = 0 if block is None else block + name.first
      tensor = name.tensor.replace('{}', str(number))
      yield Piece(path, tensor, block, shape, name)


def _theirs(name: Name, ours: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of a tensor in its file, from our shape."""
  shape = list(ours)
  for mine, theirs in enumerate(name.axes):
    shape[theirs] = ours[mine]
  if shape:
    shape[_packed(name)] = ours[-1] // name.part.count * name.part.of
  return tuple(shape)


def _packed(name: Name) -> int:
  """The axis of the file that is our last one."""
  return name.axes[-1] if name.axes else -1


def box(name: Name, shape: tuple[int, ...]) -> list[slice]:
  """Where a leaf lies in its tensor of this shape."""
  out = [slice(0, size) for size in shape]
  if name.part.of > 1:
    axis = _packed(name)
    out[axis] = name.part.along(shape[axis])
  return out


def full_names(model: Model, found: Iterable[str]) -> dict[str, str]:
  """The names in a file -> full names: files of the bare model leave the
  prefix out, and old files have other names for norms."""
  found = list(found)
  bare = not any(name.startswith(model.prefix) for name in found)
  out = {}
  for name in found:
    full = model.prefix + name if bare else name
    for old, new in _OLD_ENDINGS.items():
      if full.endswith(old):
        full = full.removesuffix(old) + new
    out[name] = full
  return out


def ignored(model: Model, name: str) -> bool:
  """Whether a file may have this tensor (by full name) although the model
  does not use it."""
  return any(re.fullmatch(pattern, name) for pattern in model.ignored)
