"""What a run keeps: nothing beyond its life, or a workdir."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax
import numpy as np

from fedms_jax.cluster.processes import SingleProcess
from fedms_jax.core.types import Tree
from fedms_jax.persistence import saved
from fedms_jax.persistence.checkpoint import Checkpointer
from fedms_jax.persistence.client_store import ClientStore
from fedms_jax.simulation.state import StageState


def kept(
  folder,
  shapes: Tree,
  train: Callable[[], Tree],
  peers: SingleProcess | None = None,
) -> Tree:
  """The tree that lies in a folder, or else the one that `train` gives, which
  is then laid there. All processes get that of the first."""
  peers = peers or SingleProcess()
  once = Checkpointer(folder, 1, peers=peers)
  try:
    found = once.restore_latest({'frozen': shapes}) if peers.primary else None
    if peers.first(np.int32(found is not None)):
      made = _zeros(shapes) if found is None else found[1]['frozen']
      return jax.tree.map(jax.numpy.asarray, peers.first(made))
    made = peers.first(train())
    if peers.primary:
      once.save(0, {'frozen': made}, {})
    return jax.tree.map(jax.numpy.asarray, made)
  finally:
    once.close()


def _zeros(shapes: Tree) -> Tree:
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


class NoPersonal:
  """The store of an algorithm without a personal part."""

  version = -1

  def __init__(self, initial: Any):
    self._initial = initial

  def gather(self, ids):
    del ids
    return self._initial

  def holds(self, ids) -> np.ndarray:
    return np.zeros(len(ids), bool)

  def scatter(self, ids, stacked, version) -> None:
    """Nothing to keep."""

  def collect(self, version) -> None:
    """Nothing to drop."""

  def rollback(self, version) -> None:
    """Nothing to drop."""

  def flush(self) -> None:
    """Nothing to write."""

  def flushing(self) -> futures.Future:
    """Nothing to wait for."""
    done = futures.Future()
    done.set_result(None)
    return done

  def close(self) -> None:
    """Nothing to close."""


class Memory:
  """Keeps the personal state of clients in memory, and no checkpoints."""

  def __init__(self, peers: SingleProcess | None = None):
    self.peers = peers or SingleProcess()
    self._stores: dict[str, ClientStore] = {}

  def pretrained(self, shapes: Tree, train: Callable[[], Tree]) -> Tree:
    """The tree that `train` gives, or gave to the run of this workdir."""
    del shapes
    return self.peers.first(train())

  def restore(self, simulation) -> StageState | None:
    """The state of the last checkpoint, None if there is none."""
    del simulation
    return None

  def after_round(self, simulation, state: StageState, store) -> None:
    """A round is dispatched; older personal states are not needed again."""
    store.collect(simulation.version(state))

  def due(self, rounds: int) -> bool:
    """Whether the state after so many rounds of a stage is to be saved. All
    processes ask after each round, and get the same answer."""
    del rounds
    return False

  def save(self, simulation, state: StageState, store: ClientStore) -> None:
    """Saves the state between two rounds; returns when it has a copy."""

  def before_saving(self, sync: Callable[[], None]) -> None:
    """Has a function called before each save."""

  def wait(self) -> None:
    """Returns when everything saved would survive a loss of power."""

  def store(self, name: str, initial: Any) -> ClientStore | NoPersonal:
    """The personal store of a stage."""
    if not jax.tree.leaves(initial):
      return NoPersonal(initial)
    if name not in self._stores:
      self._stores[name] = self._open(name, initial)
    return self._stores[name]

  def close(self) -> None:
    with contextlib.ExitStack() as stack:  # one that fails keeps none open
      for store in self._stores.values():
        stack.callback(store.close)

  def _open(self, name: str, initial: Tree) -> ClientStore:
    return ClientStore(initial)


class Disk(Memory):
  """Keeps checkpoints and personal states in a workdir.

  A checkpoint holds server state, schedule and round; the base model is not
  in it, because it never changes. Personal states carry the number of their
  round, so that a resumed run sees those of its checkpoint. Of several
  processes each has a store of its own, and the first one the checkpoints.

  Rounds go on while a thread writes; what went wrong there is raised by the
  next call.
  """

  def __init__(
    self,
    workdir,
    keep: int,
    peers: SingleProcess | None = None,
    *,
    every: int = 1,
    seconds: float = 0.0,
  ):
    """Opens the workdir's checkpoints.

    Args:
      workdir: an open `Workdir`.
      keep: how many checkpoints are kept.
      peers: the processes of the run.
      every: rounds between checkpoints; 0: whatever their number.
      seconds: from one checkpoint to the next; 0: however long it takes.
    """
    super().__init__(peers)
    self._every = every
    self._seconds = seconds
    self._began = time.monotonic()  # the last save, or this
    self._first: list[Callable[[], None]] = []
    self._workdir = workdir
    self.root = workdir.root
    workdir.begin()
    self._checkpoints = Checkpointer(
      workdir.checkpoints, keep, peers=self.peers
    )
    self._resumed_at = -1

  def _open(self, name, initial):
    folder = self._workdir.clients / name
    if self.peers.processes > 1:
      own = f'process-{self.peers.process_id}-of-{self.peers.processes}'
      folder = folder / own
    store = ClientStore(initial, folder)
    try:
      # A stage may have been killed before its first checkpoint.
      store.rollback(self._resumed_at)
    except BaseException:
      store.close()
      raise
    return store

  def after_round(self, simulation, state, store):
    """Older states are dropped when a checkpoint is safe, not before."""

  def before_saving(self, sync):
    """In the thread; it returns when what belongs to the rounds before is on
    the disk."""
    self._first.append(sync)

  def due(self, rounds):
    saving = self._checkpoints.saving
    if self._every and rounds % self._every == 0:
      return True
    if not self._seconds:
      return False
    late = time.monotonic() - self._began >= self._seconds and not saving
    if self.peers.processes > 1:  # the clock of the first counts
      late = bool(self.peers.first(np.int32(late)))
    return late

  def wait(self):
    self._checkpoints.wait()

  def pretrained(self, shapes, train):
    return kept(self._workdir.root / 'pretrained', shapes, train, self.peers)

  def save(self, simulation, state, store):
    self._began = time.monotonic()
    self._checkpoints.wait()
    if self.peers.processes > 1:
      store.flush()
    # After this, the stores of all others are safe.
    versions = self.peers.gathered(np.int32(store.version))
    oldest = self._checkpoints.oldest()
    if self.peers.primary:
      plain = saved.plain(simulation, state) | {'stores': versions.tolist()}
      version, safe = simulation.version(state), store.flushing()

      def before():
        safe.result()
        for sync in self._first:
          sync()

      stage = simulation.stages[state.stage]
      arrays = saved.arrays_of(state, stage)
      self._checkpoints.save(version, arrays, plain, before)
    if oldest is not None:
      store.collect(oldest)

  def restore(self, simulation):
    found = self._checkpoints.restore_latest(
      lambda plain: saved.template(simulation.initial, simulation.stages, plain)
    )
    if found is None:
      return None
    _, arrays, plain = found
    state = saved.state(simulation, arrays, plain)
    self._resumed_at = simulation.version(state)
    self._check_stores(simulation, state, plain['stores'])
    return state

  def _check_stores(self, simulation, state, versions: list[int]) -> None:
    """Raises `ValueError` if the personal states are not the checkpoint's."""
    if not jax.tree.leaves(state.roles.personal):
      return
    peers = self.peers
    if len(versions) != peers.processes:
      raise ValueError(
        f'{self._workdir.root} was written by {len(versions)} processes, each '
        f'with the personal states of its clients; these are {peers.processes}.'
        ' Go on with as many processes as before.'
      )
    name = simulation.stages[state.stage].folder
    store = self.store(name, state.roles.personal)
    wanted = versions[peers.process_id]
    if store.version != wanted:
      raise ValueError(
        f'{self._workdir.clients} does not hold the personal states of the '
        f'checkpoint (version {store.version}, not {wanted}). Bring the '
        'folder back, or start the run again in another one.'
      )

  def close(self):
    try:
      self._checkpoints.close()  # which may wait for a store
    finally:
      super().close()
