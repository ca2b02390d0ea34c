"""A workdir as it is, finished or running: read without a lock."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fedms_jax.core.types import Roles, Tree
from fedms_jax.persistence import run_store, saved
from fedms_jax.persistence.checkpoint import Checkpointer
from fedms_jax.persistence.client_store import ClientView
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.simulation import carried
from fedms_jax.simulation.state import Stage, StageState

_TRIES = 5


class Snapshot(run_store.Memory):
  """The newest checkpoint of a workdir, and the clients' states of it."""

  def __init__(self, path: str | os.PathLike):
    super().__init__()
    self.workdir = Workdir.look(path)
    self._views: dict[str, ClientView] = {}

  def pretrained(self, shapes: Tree, train: Callable[[], Tree]) -> Tree:
    del train
    folder = self.workdir.root / 'pretrained'
    found = _newest(folder, {'frozen': shapes})
    if found is None:
      raise ValueError(
        f'{self.workdir.root} has no pre-trained model yet. Wait for the run '
        'to reach its first round.'
      )
    return jax.tree.map(jax.numpy.asarray, found['frozen'])

  def restore(self, simulation) -> StageState:
    """The state of the newest checkpoint."""
    found = self.read(simulation.initial, simulation.stages)
    return saved.state(simulation, *found)

  def read(
    self, initial: Roles, stages: Sequence[Stage]
  ) -> tuple[dict[str, Tree], dict[str, Any]]:
    """The newest checkpoint as (arrays, state); `store` gives the clients of
    it from now on. initial: before the first stage, arrays or shapes."""
    for last in range(1 - _TRIES, 1):
      try:
        return self._read(initial, stages)
      except ValueError:
        # The run may have dropped this checkpoint while it was read.
        if not last:
          raise
    raise AssertionError

  def _read(self, initial, stages):
    plain = {}

    def template(state):
      plain.update(state)
      return saved.template(initial, stages, state)

    arrays = _newest(self.workdir.checkpoints, template)
    if arrays is None:
      raise ValueError(
        f'{self.workdir.root} has no checkpoint yet. Wait for the first round.'
      )
    if jax.tree.leaves(arrays['personal']):
      number, name = plain['stage'], stages[plain['stage']].folder
      version = sum(s.rounds for s in stages[:number]) + plain['round']
      folder = self.workdir.clients / name
      self._views[name] = ClientView(arrays['personal'], folder, version)
      if stages[number].carry is not None and number:
        self._open_before(initial, stages[:number])
    return arrays, plain

  def _open_before(self, initial, stages) -> None:
    """Opens the states that the clients of the next stage begin with."""
    shapes = carried.personal_shapes(initial, stages)
    there = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    version, name = sum(s.rounds for s in stages), stages[-1].folder
    folder = self.workdir.clients / name
    self._views[name] = ClientView(there, folder, version)

  def store(self, name: str, initial: Tree):
    return self._views.get(name) or run_store.NoPersonal(initial)

  def close(self) -> None:
    for view in self._views.values():
      view.close()


def _newest(folder: pathlib.Path, template) -> dict[str, Tree] | None:
  """The arrays of the newest checkpoint in a folder."""
  if not folder.is_dir():
    return None
  reader = Checkpointer(folder, 1, read_only=True)
  try:
    found = reader.restore_latest(template)
    return None if found is None else found[1]
  finally:
    reader.close()
