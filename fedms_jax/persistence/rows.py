"""What keeps rows of bytes under (client, version); and it in memory."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Rows(Protocol):
  """K rows of `width` bytes each are uint8 `[K, width]`, ids int64 `[K]`."""

  def version(self) -> int:
    """The newest version there is, -1 if there is none."""
    ...

  def touched(self) -> np.ndarray:
    """All clients that have a row, int64, sorted."""
    ...

  def read(self, ids: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Puts the newest row of `ids[i]` into `out[i]`; bool `[K]`: has it one?"""
    ...

  def write(self, ids: np.ndarray, rows: np.ndarray, version: int) -> None:
    """Adds all rows, or none."""

  def rollback(self, version: int) -> None:
    """Drops everything newer than `version`.

    Raises:
      ValueError: `collect` has dropped what that version consists of.
    """

  def collect(self, version: int) -> None:
    """Drops of each client what is older than its newest row <= `version`.

    Takes time for what was written since the last call, not for the rest.
    """

  def sync(self) -> None:
    """Returns when everything written would survive a loss of power."""

  def close(self) -> None: ...


def check_rollback(version: int, collected: int) -> None:
  if version < collected:
    raise ValueError(
      f'the client store cannot go back to version {version}: states that '
      f'were replaced up to version {collected} are gone. Resume from a '
      'newer checkpoint, or start the run again in another folder.'
    )


class MemoryRows:
  """Rows in a dict. Lists are replaced, never changed: readers need no lock."""

  def __init__(self):
    self._rows: dict[int, list[tuple[int, np.ndarray]]] = {}
    self._log: dict[int, set[int]] = {}  # version -> clients, since collected
    self._version = self._collected = -1

  def version(self) -> int:
    return self._version

  def touched(self) -> np.ndarray:
    return np.array(sorted(self._rows), np.int64)

  def read(self, ids: np.ndarray, out: np.ndarray) -> np.ndarray:
    found = np.zeros(len(ids), bool)
    for i, client in enumerate(ids.tolist()):
      states = self._rows.get(client)
      if states:
        out[i] = states[-1][1]
        found[i] = True
    return found

  def write(self, ids: np.ndarray, rows: np.ndarray, version: int) -> None:
    for client, row in zip(ids.tolist(), rows, strict=True):
      # A copy: one row of a block would keep the whole block in memory.
      states = self._rows.get(client, ())
      self._rows[client] = [*states, (version, row.copy())]
    self._log.setdefault(version, set()).update(ids.tolist())
    self._version = max(self._version, version)

  def rollback(self, version: int) -> None:
    check_rollback(version, self._collected)
    for newer in [v for v in self._log if v > version]:
      for client in self._log.pop(newer):
        kept = [x for x in self._rows.get(client, ()) if x[0] <= version]
        self._rows[client] = kept
        if not kept:
          del self._rows[client]
    newest = (states[-1][0] for states in self._rows.values())
    self._version = max(newest, default=-1)

  def collect(self, version: int) -> None:
    for v in [v for v in self._log if v <= version]:
      for client in self._log.pop(v):
        states = self._rows[client]
        old = sum(x[0] <= version for x in states)
        self._rows[client] = states[max(old - 1, 0) :]
    self._collected = max(self._collected, version)

  def sync(self) -> None:
    pass

  def close(self) -> None:
    pass
