"""Rows of bytes under (client, version), in LMDB.

What lies beneath a `ClientStore`. Of a client the newest version is read;
`rollback` makes an older one the newest again, `collect` forgets what no
rollback will ask for.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from fedms_jax.persistence import files, lmdb_file
from fedms_jax.persistence.rows import check_rollback


class LmdbRows:
  """Rows in an LMDB environment.

  `rows` maps client + inverted version to the bytes, so that one seek finds
  the newest version; `log` has a key version + client for each of them, so
  that rollback and collect look at recent rounds only.
  """

  def __init__(self, path: str | os.PathLike, layout: str):
    """Opens or makes the folder `path`.

    Args:
      path: folder of the files.
      layout: says how a row is to be read; kept with the rows.

    Raises:
      ValueError: the files are damaged, or hold rows of another layout.
    """
    import lmdb  # lazy: runs without a workdir need none

    self._lmdb = lmdb
    self._path = os.fspath(path)
    os.makedirs(self._path, exist_ok=True)
    lmdb_file.check(self._path)
    _reserve(os.path.join(self._path, 'lock.mdb'))
    try:
      self._env = _open_largest(lmdb, self._path)
    except _damage(lmdb) as e:
      raise ValueError(
        f'the client store {self._path} cannot be opened ({e}). If its files '
        'are damaged, start the run again in another folder.'
      ) from e
    try:
      self._open_tables(layout)
    except BaseException:
      self._env.close()
      raise

  def _open_tables(self, layout: str) -> None:
    with self._storage():
      self._env.reader_check()  # killed readers would keep pages from reuse
      self._rows = self._env.open_db(b'rows')
      self._log = self._env.open_db(b'log')
      self._meta = self._env.open_db(b'meta')
      with self._env.begin(write=True) as txn:
        found = txn.get(b'layout', db=self._meta)
        if found is None:
          txn.put(b'layout', layout.encode(), db=self._meta)
    if found is not None and found.decode() != layout:
      raise ValueError(
        f'the client store {self._path} is of another model: '
        f'{_first_difference(json.loads(found), json.loads(layout))}. '
        'Give the flags that it was made with, or choose another folder.'
      )

  def version(self) -> int:
    with self._storage(), self._env.begin(db=self._log) as txn:
      cursor = txn.cursor()
      return _pair(cursor.key())[0] if cursor.last() else -1

  def touched(self) -> np.ndarray:
    with self._storage(), self._env.begin(db=self._rows) as txn:
      keys = b''.join(txn.cursor().iternext(values=False))
    pairs = np.frombuffer(keys, '>u8').reshape(-1, 2)
    return np.unique(pairs[:, 0]).astype(np.int64)

  def read(self, ids: np.ndarray, out: np.ndarray) -> np.ndarray:
    found = np.zeros(len(ids), bool)
    prefixes = ids.astype('>u8').tobytes()
    begin = self._env.begin
    with self._storage(), begin(db=self._rows, buffers=True) as txn:
      cursor = txn.cursor()
      for i in range(len(ids)):
        prefix = prefixes[8 * i : 8 * i + 8]
        if cursor.set_range(prefix) and cursor.key()[:8] == prefix:
          out[i] = np.frombuffer(cursor.value(), np.uint8)
          found[i] = True
    return found

  def write(self, ids: np.ndarray, rows: np.ndarray, version: int) -> None:
    def put(txn):
      for i in np.argsort(ids).tolist():
        client = int(ids[i])
        txn.put(_row_key(client, version), rows[i], db=self._rows)
        txn.put(_key(version, client), b'', db=self._log)

    self._change(put)

  def rollback(self, version: int) -> None:
    def drop(txn):
      check_rollback(version, self._collected(txn))
      for newer, client in self._logged(txn, version + 1):
        txn.delete(_key(newer, client), db=self._log)
        txn.delete(_row_key(client, newer), db=self._rows)

    self._change(drop)

  def collect(self, version: int) -> None:
    def drop(txn):
      collected = self._collected(txn)
      cursor = txn.cursor(self._rows)
      for client in {
        client for v, client in self._logged(txn, collected + 1) if v <= version
      }:
        # The newest version to keep comes first, those to drop follow it.
        more = cursor.set_range(_row_key(client, version)) and cursor.next()
        while more and _pair(cursor.key())[0] == client:
          old = _INVERT - _pair(cursor.key())[1]
          txn.delete(_key(old, client), db=self._log)
          more = cursor.delete() and cursor.key() != b''
      if version > collected:
        txn.put(b'collected', str(version).encode(), db=self._meta)

    self._change(drop)

  def sync(self) -> None:
    with self._storage():
      self._env.sync(True)

  def close(self) -> None:
    self._env.close()

  def _collected(self, txn) -> int:
    return int(txn.get(b'collected', b'-1', db=self._meta))

  def _logged(self, txn, version: int) -> list[tuple[int, int]]:
    """(version, client) of everything logged from `version` on."""
    cursor = txn.cursor(self._log)
    if not cursor.set_range(_key(version, 0)):
      return []
    return [_pair(key) for key in cursor.iternext(values=False)]

  def _change(self, change: Callable[[Any], None]) -> None:
    """Runs one write transaction; on an error nothing of it remains."""
    with self._storage(), self._env.begin(write=True) as txn:
      change(txn)

  def _storage(self):
    """Errors of LMDB are those of storage. (A write that the disk takes in
    part is an input/output error to it.)"""
    return files.storage(
      f'the client store {self._path}: its disk, its quota or the address '
      'space of this process may be full',
      self._lmdb.Error,
    )


class LmdbSnapshot:
  """The rows of an environment at one moment, whoever writes to it later."""

  def __init__(self, path: str | os.PathLike, version: int):
    """Opens the folder `path`, to read what was newest at `version`.

    Raises:
      ValueError: the writer has dropped what that version consists of.
    """
    import lmdb

    path = os.fspath(path)
    lmdb_file.check(path)
    lock = os.access(os.path.join(path, 'lock.mdb'), os.W_OK)
    self._env = lmdb.open(path, readonly=True, lock=lock, max_dbs=3)
    self._txn = self._env.begin()
    self._version = version
    meta = self._env.open_db(b'meta', self._txn, create=False)
    self._rows = self._env.open_db(b'rows', self._txn, create=False)
    collected = int(self._txn.get(b'collected', b'-1', db=meta))
    if version < collected:
      self.close()
      check_rollback(version, collected)

  def read(self, ids: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Puts the row of `ids[i]` into `out[i]`; bool `[K]`: has it one?"""
    found = np.zeros(len(ids), bool)
    cursor = self._txn.cursor(self._rows)
    for i, client in enumerate(ids.tolist()):
      # Newer versions sort before this key, older ones behind it.
      if (
        cursor.set_range(_row_key(client, self._version))
        and _pair(cursor.key())[0] == client
      ):
        out[i] = np.frombuffer(cursor.value(), np.uint8)
        found[i] = True
    return found

  def close(self) -> None:
    self._txn.abort()
    self._env.close()


_INVERT = 2**64 - 1
_PAIR = struct.Struct('>QQ')  # big-endian: bytes sort as the numbers do


def _key(version: int, client: int) -> bytes:
  return _PAIR.pack(version, client)


def _row_key(client: int, version: int) -> bytes:
  return _PAIR.pack(client, _INVERT - version)


def _pair(key: bytes) -> tuple[int, int]:
  return _PAIR.unpack(key)


def _damage(lmdb) -> tuple[type[Exception], ...]:
  """What says that a file is damaged, and not that storage has run out."""
  return lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError


def _reserve(path: str) -> None:
  """Takes the room of LMDB's lock file, which is written through a map: on a
  full disk that would kill the process (SIGBUS)."""
  descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o664)
  try:
    os.posix_fallocate(descriptor, 0, 2**14)
  except OSError as e:
    if e.errno in files.LIMITS:
      raise
  finally:
    os.close(descriptor)


def _open_largest(lmdb, path: str):
  """The environment with the largest map that the address space allows.

  The map is virtual: files grow with what is written, and a map that never
  has to grow needs no stop of all readers. Syncing of the meta page is left
  to `sync`: a loss of power may undo the last commit, never damage the file.
  """
  size = 2**44
  while True:
    try:
      return lmdb.open(path, map_size=size, max_dbs=3, metasync=False)
    except lmdb.MemoryError:
      size //= 4
      if size < 2**30:
        raise


def _first_difference(theirs: list[Any], ours: list[Any]) -> str:
  """The first leaf that differs between two layouts."""
  for old, new in zip(theirs, ours, strict=False):
    if old != new:
      return f'{old} there, {new} in this run'
  return f'{len(theirs)} arrays there, {len(ours)} in this run'
