"""A workdir as it is, finished or running: read without a lock."""

from __future__ import annotations

import os

import jax

from fedms_jax.base import Tree
from fedms_jax.simulation import keeper
from fedms_jax.simulation.checkpoint import Checkpointer
from fedms_jax.simulation.client_store import ClientView
from fedms_jax.simulation.state import StageState
from fedms_jax.simulation.workdir import Workdir

_TRIES = 5


class Snapshot(keeper.Memory):
  """The newest checkpoint of a workdir, and the clients' states of it."""

  def __init__(self, path: str | os.PathLike):
    super().__init__()
    self._workdir = Workdir.look(path)
    self._views: dict[str, ClientView] = {}

  def pretrained(self, shapes, train) -> Tree:
    del train
    folder = self._workdir.root / 'pretrained'
    found = self._newest(folder, {'frozen': shapes})
    if found is None:
      raise ValueError(
        f'{self._workdir.root} has no pre-trained model yet. Wait for the run '
        'to reach its first round.'
      )
    return jax.tree.map(jax.numpy.asarray, found[1]['frozen'])

  def restore(self, simulation) -> StageState:
    """The state of the newest checkpoint."""
    for last in range(1 - _TRIES, 1):
      try:
        return self._restored(simulation)
      except ValueError:
        # The run may have dropped this checkpoint while it was read.
        if not last:
          raise
    raise AssertionError

  def _restored(self, simulation) -> StageState:
    found = self._newest(
      self._workdir.checkpoints,
      lambda plain: keeper.template(simulation, plain),
    )
    if found is None:
      raise ValueError(
        f'{self._workdir.root} has no checkpoint yet. Wait for the first round.'
      )
    _, arrays, plain = found
    state = keeper.saved_state(simulation, arrays, plain)
    name = simulation.stages[state.stage].name
    if jax.tree.leaves(state.roles.personal):
      folder = self._workdir.clients / name
      self._views[name] = ClientView(
        state.roles.personal, folder, simulation.version(state)
      )
    return state

  def store(self, name: str, initial: Tree):
    return self._views.get(name) or keeper.NoPersonal(initial)

  def close(self) -> None:
    for view in self._views.values():
      view.close()

  def _newest(self, folder, template):
    if not folder.is_dir():
      return None
    reader = Checkpointer(folder, 1, read_only=True)
    try:
      return reader.restore_latest(template)
    finally:
      reader.close()
