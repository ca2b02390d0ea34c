"""Personal state of clients between rounds, in memory or on the disk.

Clients that were never written take no space. Order of calls around a
checkpoint: `scatter` the round, `flush`, save the checkpoint, `collect` up to
the oldest checkpoint kept; on resume, `rollback` to the checkpoint's version.
"""

from __future__ import annotations

import collections
import json
import os
import threading
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.types import Tree
from fedms_jax.persistence import versioned_rows
from fedms_jax.persistence.rows import MemoryRows, Rows

_MAX_WRITES = 2  # rounds waiting for the disk before `scatter` waits too


class ClientStore:
  """The personal trees of all clients, of one structure.

  Writing runs behind, in a thread; what was scattered is gathered at once,
  written or not. Calls come from one thread.
  """

  def __init__(self, initial: Tree, path: str | os.PathLike | None = None):
    """Opens the store.

    Args:
      initial: state of a client that was never written; numpy or jax arrays.
      path: folder of the store, on a local file system; made if absent.
        None: the store lives in memory.

    Raises:
      ValueError: the folder holds states of another structure, or is damaged.
    """
    self._layout = RowLayout(initial)
    self._initial = self._layout.initial
    self._rows: Rows
    if path is None:
      self._rows = MemoryRows()
    else:
      self._rows = versioned_rows.LmdbRows(path, self._layout.text())
    self._version = self._rows.version()
    self._lock = threading.Lock()
    self._unwritten: dict[int, _Unwritten] = {}  # by client, the newest
    self._writer = futures.ThreadPoolExecutor(1, 'client-store-write')
    self._failed: BaseException | None = None
    # The version at the time, and the future, of every task of the writer.
    self._writes: collections.deque = collections.deque()

  @property
  def version(self) -> int:
    """The newest version scattered, -1 if there is none.

    Keep it in the checkpoint and compare after `rollback`: a store that is
    behind its checkpoint has been replaced or lost.
    """
    return self._version

  def gather(self, ids: np.ndarray) -> Tree:
    """The newest state of K clients, numpy arrays `[K, ...]`.

    Args:
      ids: client numbers, integers `[K]`.
    """
    return self._layout.unpack(self._read(_checked(ids)))

  def holds(self, ids: np.ndarray) -> np.ndarray:
    """Which of K clients were ever written, bool `[K]`."""
    ids = _checked(ids)
    with self._lock:
      unwritten = np.array([c in self._unwritten for c in ids.tolist()], bool)
    rows = np.empty((len(ids), self._initial.shape[1]), np.uint8)
    return unwritten | self._rows.read(ids, rows)

  def scatter(self, ids: np.ndarray, stacked: Tree, version: int) -> None:
    """Makes `stacked` the newest state of K clients, all of them or none.

    Returns at once: jax arrays are waited for by the writer, so they may be
    still in the making, and must not be donated. An error of device or disk is
    raised by a later call, at the latest by `flush`.

    Args:
      ids: distinct client numbers, integers `[K]`.
      stacked: tree of arrays `[K, ...]`; those of numpy are copied.
      version: number of the round over all stages, not below those before.
    """
    ids = _checked(ids)
    if len(np.unique(ids)) < len(ids):
      raise ValueError(f'ids={ids} name a client twice; allowed: once each.')
    if not version >= max(self._version, 0):
      raise ValueError(
        f'version={version} is older than the newest of the store, '
        f'{self._version}. Roll the store back first.'
      )
    leaves = self._layout.leaves(stacked, len(ids))
    clients = ids.tolist()
    rows = futures.Future()  # of the packed rows, before they are written
    unwritten = [_Unwritten(rows, i) for i in range(len(ids))]
    with self._lock:
      self._unwritten.update(zip(clients, unwritten, strict=True))
    self._version = version
    self._submit(self._write, ids, leaves, unwritten, rows, version)

  def touched(self) -> np.ndarray:
    """All clients that were ever written, int64, sorted."""
    self._settle()
    return self._rows.touched()

  def rollback(self, version: int) -> None:
    """Drops everything newer than `version`; -1 drops all.

    Raises:
      ValueError: `collect` has dropped what that version consists of.
    """
    self._settle()
    self._rows.rollback(version)
    self._version = self._rows.version()

  def collect(self, version: int) -> None:
    """Drops states that no `rollback` to `version` or later needs.

    Costs time in proportion to what was written since the last call. Where
    nothing is ever rolled back, call it with each round's version.
    """
    self._submit(self._on_rows, self._rows.collect, version)

  def flush(self) -> None:
    """Returns when everything scattered would survive a loss of power."""
    self.flushing().result()
    self._settle()

  def flushing(self) -> futures.Future:
    """What is done when everything scattered until now would survive a loss
    of power; it may be waited for in any thread."""
    self._submit(self._on_rows, self._rows.sync)
    return self._writes[-1][1]

  def close(self) -> None:
    """Writes what is left and closes the files."""
    try:
      self._settle()
    finally:
      self._writer.shutdown()
      self._rows.close()

  def _read(self, ids: np.ndarray) -> np.ndarray:
    """The newest rows, uint8 `[K, width]`."""
    rows = np.empty((len(ids), self._initial.shape[1]), np.uint8)
    with self._lock:
      # Before the read: what is no longer here is in the files by then.
      unwritten = [
        (i, self._unwritten[client])
        for i, client in enumerate(ids.tolist())
        if client in self._unwritten
      ]
    rows[~self._rows.read(ids, rows)] = self._initial
    for i, row in unwritten:
      rows[i] = row.rows.result()[row.place]
    return rows

  def _write(self, ids, leaves, unwritten, rows, version: int) -> None:
    """Packs and writes a cohort, in the writer's thread."""
    try:
      rows.set_result(self._layout.pack(leaves, len(ids)))
    except BaseException as e:  # who waits for the rows must not wait forever
      rows.set_exception(e)
      raise
    # Who waits for the rows has them, also after an earlier failure.
    self._on_rows(self._rows.write, ids, rows.result(), version)
    with self._lock:
      for client, row in zip(ids.tolist(), unwritten, strict=True):
        if self._unwritten.get(client) is row:  # not scattered again since
          del self._unwritten[client]

  def _submit(self, task, *args) -> None:
    """Queues a task of the writer, after the errors of those before."""
    while self._writes and (
      self._writes[0][1].done()
      or len({version for version, _ in self._writes}) > _MAX_WRITES
    ):
      self._writes.popleft()[1].result()
    future = self._writer.submit(self._run, task, *args)
    self._writes.append((self._version, future))

  def _run(self, task, *args) -> None:
    """A task in the writer's thread."""
    try:
      task(*args)
    except BaseException as e:
      self._failed = self._failed or e
      raise

  def _on_rows(self, change, *args) -> None:
    """Changes the files, unless a change before has failed: a checkpoint must
    not count on what is not there."""
    if self._failed is not None:
      raise self._failed
    change(*args)

  def _settle(self) -> None:
    """Waits for the writer."""
    while self._writes:
      self._writes.popleft()[1].result()


class ClientView:
  """The personal trees of a store at one version, to read only."""

  def __init__(self, initial: Tree, path: str | os.PathLike, version: int):
    """Opens the folder of a store, which another process may write to.

    Raises:
      ValueError: the store has dropped what that version consists of.
    """
    self._layout = RowLayout(initial)
    self._rows = versioned_rows.LmdbSnapshot(path, version)

  def gather(self, ids: np.ndarray) -> Tree:
    """The state of K clients, numpy arrays `[K, ...]`."""
    ids = _checked(ids)
    rows = np.repeat(self._layout.initial, len(ids), axis=0)
    self._rows.read(ids, rows)
    return self._layout.unpack(rows)

  def holds(self, ids: np.ndarray) -> np.ndarray:
    """Which of K clients were ever written, bool `[K]`."""
    ids = _checked(ids)
    rows = np.repeat(self._layout.initial, len(ids), axis=0)
    return self._rows.read(ids, rows)

  def close(self) -> None:
    self._rows.close()


class RowLayout:
  """A client's tree as a row of bytes: its leaves, one after another."""

  def __init__(self, initial: Tree):
    import jax

    paths, self._treedef = jax.tree_util.tree_flatten_with_path(initial)
    if not paths:
      raise ValueError('The initial state of a client holds no array.')
    arrays = [np.asarray(leaf) for _, leaf in paths]
    self._leaves = [
      _Leaf(jax.tree_util.keystr(path), array.dtype, array.shape)
      for (path, _), array in zip(paths, arrays, strict=True)
    ]
    self._bounds = np.cumsum([0] + [array.nbytes for array in arrays])
    self.initial = self.pack([array[None] for array in arrays], 1)  # [1, width]

  def text(self) -> str:
    """Path, dtype and shape of every leaf, as JSON."""
    return json.dumps(
      [[leaf.path, leaf.dtype.name, leaf.shape] for leaf in self._leaves]
    )

  def leaves(self, stacked: Tree, size: int) -> list[Any]:
    """The leaves of a tree stacked to `[K, ...]`, K = `size`.

    They fit the layout and will not change: numpy arrays are copied.
    """
    import jax

    arrays, treedef = jax.tree.flatten(stacked)
    if treedef != self._treedef:
      raise ValueError(
        f'A client state has the structure {treedef}; wanted {self._treedef}.'
      )
    arrays = [x if isinstance(x, jax.Array) else np.array(x) for x in arrays]
    for leaf, array in zip(self._leaves, arrays, strict=True):
      if array.dtype != leaf.dtype or array.shape != (size, *leaf.shape):
        raise ValueError(
          f'{leaf.path} of the client states is {array.dtype}{array.shape}; '
          f'wanted {leaf.dtype}{(size, *leaf.shape)}.'
        )
    return arrays

  def pack(self, leaves: list[Any], size: int) -> np.ndarray:
    """Rows uint8 `[K, width]` of `leaves`; waits for jax arrays."""
    import jax

    rows = np.empty((size, self._bounds[-1]), np.uint8)
    for i, array in enumerate(jax.device_get(leaves)):
      flat = np.ascontiguousarray(array).reshape(size, self._leaves[i].size)
      rows[:, self._bounds[i] : self._bounds[i + 1]] = flat.view(np.uint8)
    return rows

  def unpack(self, rows: np.ndarray) -> Tree:
    """The stacked tree `[K, ...]` of rows uint8 `[K, width]`."""
    import jax

    arrays = []
    for i, leaf in enumerate(self._leaves):
      flat = np.ascontiguousarray(
        rows[:, self._bounds[i] : self._bounds[i + 1]]
      )
      shape = (len(rows), *leaf.shape)
      arrays.append(flat.view(leaf.dtype).reshape(shape))
    return jax.tree.unflatten(self._treedef, arrays)


class _Leaf(NamedTuple):
  path: str
  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64))


class _Unwritten(NamedTuple):
  """A state on its way to the files: a row among those being packed."""

  rows: futures.Future
  place: int


def _checked(ids: np.ndarray) -> np.ndarray:
  """Client numbers as int64 `[K]`, proven to be such."""
  array = np.asarray(ids)
  if array.size == 0:
    array = array.astype(np.int64)
  if array.ndim != 1 or array.dtype.kind not in 'iu' or (array < 0).any():
    raise ValueError(f'ids={ids!r} are no client numbers; wanted: [K], >= 0.')
  return array.astype(np.int64)
