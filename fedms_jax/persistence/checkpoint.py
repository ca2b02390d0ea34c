"""Checkpoints of a run: named trees of arrays and a JSON state.

Each is a folder named by its step, made under another name and renamed when
it is on the disk. Orbax writes and reads what is in it. All leaves travel as
one buffer of bytes: orbax spends milliseconds on every array it is given, and
a run of short rounds has dozens of small ones. A checksum over buffer and
state finds any damage at restore.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import numpy as np

from fedms_jax.cluster.processes import SingleProcess
from fedms_jax.core.types import Tree
from fedms_jax.persistence import files, orbax_folder

# Item, key path, dtype and shape of every leaf, in the order of the buffer.
Layout = list[list[Any]]
# Of names that a kill left; the last is that of orbax's CheckpointManager,
# which wrote the folders of earlier versions.
_UNFINISHED = ('.tmp', '.old', '.orbax-checkpoint-tmp')


class Checkpointer:
  """Saves and restores the checkpoints of one folder."""

  def __init__(
    self,
    folder: str | os.PathLike,
    keep: int,
    *,
    read_only: bool = False,
    peers: SingleProcess | None = None,
  ):
    """Opens the folder, which is made if absent.

    Args:
      folder: where each checkpoint has a folder named by its step.
      keep: how many of the newest are kept.
      read_only: another process may save there; nothing is changed.
      peers: of several processes the first one saves, the others read.
    """
    self._folder = pathlib.Path(folder).absolute()
    self._keep = keep
    self._peers = peers or SingleProcess()
    self._writer = futures.ThreadPoolExecutor(1, 'checkpoint')
    self._saving: futures.Future | None = None
    if read_only or not self._peers.primary:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    for name in os.listdir(self._folder):
      if name.endswith(_UNFINISHED):
        shutil.rmtree(self._folder / name, ignore_errors=True)

  def oldest(self) -> int | None:
    """The oldest finished checkpoint that is kept, None if there is none.

    No resume goes back behind it, so older personal states can be dropped.
    """
    return min(self._steps(), default=None)

  @property
  def saving(self) -> bool:
    """Whether a save is under way. Raises what went wrong with the last one."""
    if self._saving is not None and self._saving.done():
      self.wait()
    return self._saving is not None

  def save(
    self,
    step: int,
    arrays: Mapping[str, Tree],
    state: Mapping[str, Any],
    before: Callable[[], None] = lambda: None,
  ) -> None:
    """Copies the arrays to the host, and writes them in a thread.

    Waits for the save before this one. An error in the background is raised
    by the next `save`, `saving`, `wait` or `close`.

    Args:
      step: number of the checkpoint, larger than all before.
      arrays: trees by name, of numpy or jax arrays and Python numbers; typed
        random keys go in as `jax.random.key_data`. Arrays must be whole on
        this process, replicated ones included.
      state: what JSON can hold; tuples come back as lists.
      before: is called in the thread first; returns when what the checkpoint
        counts on is on the disk.
    """
    self.wait()
    if step in self._steps():
      raise ValueError(f'checkpoint {self._folder / str(step)} already exists.')
    layout, packed = _pack(arrays)
    text = json.dumps({'layout': layout, 'state': state})
    self._saving = self._writer.submit(self._write, step, text, packed, before)

  def _write(self, step: int, text: str, packed: np.ndarray, before) -> None:
    """Writes a checkpoint and removes the oldest, in the thread."""
    before()
    body = {'crc32': _checksum(text, packed), **json.loads(text)}
    unfinished = self._folder / f'{step}.tmp'
    try:
      unfinished.mkdir()
      # One deeper, so that what orbax leaves beside it goes with the rest.
      made = unfinished / str(step)
      orbax_folder.write(made, packed, body, self._peers)
      files.sync_tree(made)
      os.rename(made, self._folder / str(step))
    finally:
      shutil.rmtree(unfinished, ignore_errors=True)
    files.sync_folder(self._folder)
    for old in sorted(self._steps())[: -self._keep]:
      # Renamed first: a kill must not leave half of what counts as finished.
      gone = self._folder / f'{old}.old'
      os.rename(self._folder / str(old), gone)
      shutil.rmtree(gone, ignore_errors=True)

  def restore_latest(
    self,
    template: Mapping[str, Tree]
    | Callable[[dict[str, Any]], Mapping[str, Tree]]
    | None = None,
  ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """The newest checkpoint as (step, arrays, state), None if there is none.

    Args:
      template: trees with the structure, shapes and dtypes to restore, or a
        function that makes them from the restored state. None: each item
        comes back as a flat dict from key path to array.

    Returns:
      Leaves are numpy arrays, equal to the saved ones bit by bit.

    Raises:
      ValueError: the checkpoint is damaged, or does not fit the template.
    """
    self.wait()
    step = max(self._steps(), default=None)
    if step is None:
      return None
    layout, packed, state = self._read(step)
    leaves = _unpack(layout, packed)
    if template is None:
      arrays = {item: {} for item, *_ in layout}
      for (item, path, *_), leaf in zip(layout, leaves, strict=True):
        arrays[item][path] = leaf
      return step, arrays, state
    if callable(template):
      template = template(state)
    _check_fit(self._folder / str(step), layout, template)
    return step, _fill(template, leaves), state

  def _read(self, step: int) -> tuple[Layout, np.ndarray, dict[str, Any]]:
    """Layout, buffer and state of a step, proven to be what was saved."""
    path = self._folder / str(step)
    try:
      packed, body = orbax_folder.read(path, self._peers)
      crc32 = body.pop('crc32')
      if _checksum(json.dumps(body), packed) != crc32:
        raise ValueError('the checksum is wrong')
    except Exception as e:  # whatever a damaged file makes the reader raise
      if files.limit(e):
        raise
      older = [other for other in self._steps() if other < step]
      then = f'step {max(older)}' if older else 'the start'
      raise ValueError(
        f'checkpoint {path} is damaged ({type(e).__name__}: {_line(e)}). '
        f'Remove that folder and resume: the run goes on from {then}.'
      ) from e
    return body['layout'], packed, body['state']

  def _steps(self) -> list[int]:
    """All finished checkpoints; unfinished ones have a longer name."""
    try:
      names = os.listdir(self._folder)
    except FileNotFoundError:
      return []
    return [int(name) for name in names if name.isdigit()]

  def wait(self) -> None:
    """Returns when all saves are on the disk."""
    saving, self._saving = self._saving, None
    if saving is not None:
      saving.result()

  def close(self) -> None:
    """Waits for all saves and stops the thread."""
    try:
      self.wait()
    finally:
      self._writer.shutdown()


def _pack(arrays: Mapping[str, Tree]) -> tuple[Layout, np.ndarray]:
  """The layout of all leaves, and their bytes in one uint8 buffer."""
  import jax

  layout, chunks = [], []
  for item, path, leaf in _leaves(jax.device_get(dict(arrays))):
    leaf = np.asarray(leaf)
    if leaf.dtype.kind not in 'biufcV':  # V: bfloat16 and its like
      raise ValueError(f'{item}{path} is no array of numbers: {leaf!r}.')
    layout.append([item, path, leaf.dtype.name, list(leaf.shape)])
    chunks.append(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
  chunks.append(np.zeros(1, np.uint8))  # orbax saves no empty array
  return layout, np.concatenate(chunks)


def _unpack(layout: Layout, packed: np.ndarray) -> list[np.ndarray]:
  """The leaves in the order of the layout."""
  leaves, start = [], 0
  for _, _, name, shape in layout:
    dtype = np.dtype(name)  # jax taught numpy the names of bfloat16 and others
    stop = start + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    # The copy is aligned, the slice need not be.
    leaf = packed[start:stop].copy().view(dtype).reshape(shape)
    leaves.append(leaf)
    start = stop
  return leaves


def _leaves(arrays: Mapping[str, Tree]) -> list[tuple[str, str, Any]]:
  """Item, key path and value of every leaf, the items in order of name."""
  import jax

  return [
    (item, jax.tree_util.keystr(path), leaf)
    for item in sorted(arrays)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays[item])
  ]


def _fill(
  template: Mapping[str, Tree], leaves: list[np.ndarray]
) -> dict[str, Tree]:
  """The template with its leaves replaced, in the order of `_leaves`."""
  import jax

  rest = iter(leaves)
  return {
    item: jax.tree.map(lambda _: next(rest), template[item])
    for item in sorted(template)
  }


def _check_fit(
  where: pathlib.Path, layout: Layout, template: Mapping[str, Tree]
) -> None:
  """Raises `ValueError` for the first leaf that differs from the template."""
  saved = {f'{item}{path}': (name, shape) for item, path, name, shape in layout}
  wanted = {
    f'{item}{path}': (
      np.dtype(getattr(leaf, 'dtype', None) or np.asarray(leaf).dtype).name,
      list(np.shape(leaf)),
    )
    for item, path, leaf in _leaves(template)
  }
  for path in [*saved, *wanted]:
    if saved.get(path) != wanted.get(path):
      raise ValueError(
        f'checkpoint {where} is of another model: {path} is '
        f'{saved.get(path, "absent")} there and {wanted.get(path, "absent")} '
        'in this run.'
      )


def _checksum(text: str, packed: np.ndarray) -> int:
  """CRC-32 of the buffer and of the JSON text of layout and state."""
  return zlib.crc32(text.encode(), zlib.crc32(packed.data))


def _line(error: Exception) -> str:
  """What an error says, on one line and not long."""
  return ' '.join(str(error).split())[:200]
