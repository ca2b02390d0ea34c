"""Personal states on the device: those of clients that took part of late.

A store that gives back what was scattered a moment ago has to fetch it from the
device, and so waits for the round that makes it; the next round then starts
late whenever two cohorts share a client. Here the newest states stay where they
are made, and a round that needs them is queued behind the one that makes them.
All states still go to the store, whose thread fetches them meanwhile: what a
checkpoint finds there does not depend on this file.
"""

from __future__ import annotations

import collections
from typing import Any

import jax
import numpy as np

from fedms_jax.cluster import memory
from fedms_jax.cluster.placement import Placement
from fedms_jax.core import arrays, compile, tree
from fedms_jax.core.types import Federation, Tree
from fedms_jax.simulation.state import Options

_SHARE = 0.1  # of the device's free memory, if nothing else is said


def kept(
  store: Any,
  one: Tree,
  federation: Federation,
  options: Options,
  place: Placement,
) -> Any:
  """A store that keeps states on the device, or the store itself.

  `Options.personal` bytes are for them; 0: a tenth of what an accelerator has
  free, and nothing on a CPU, whose memory is the host's. Where clients are
  spread over several devices, none of them has all states.

  Args:
    store: of all clients of this process.
    one: a client's personal tree.
  """
  size, budget = tree.nbytes(one), options.personal
  clients = -(-federation.train.num_clients // place.peers.processes)
  cohort = min(options.cohort, clients)
  if not budget and jax.default_backend() != 'cpu':
    budget = _SHARE * memory.device()
  slots = int(min(clients, budget // max(size, 1)))
  # Those of two rounds must be there, or nothing that is needed would be.
  enough = min(clients, 2 * cohort)
  if not size or place.mesh is not None or slots < enough:
    return store
  return Recent(store, one, slots, cohort)


class Recent:
  """A store with the states of `slots` clients on the device before it; those
  are given up first that were used the longest ago. Everything else is the
  store's. nbytes: bytes of the device that it takes."""

  def __init__(self, store: Any, one: Tree, slots: int, cohort: int):
    self._store = store
    self._slots, self._cohort = slots, cohort
    self._states = arrays.zeros(tree.shapes(one, slots))
    # The place of each client that is there, the longest unused first.
    self._places: collections.OrderedDict[int, int] = collections.OrderedDict()
    self.nbytes = tree.nbytes(self._states)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._store, name)

  def gather(self, ids: np.ndarray) -> Tree:
    """The newest states of K clients [K, ...], on the device."""
    if not 0 < len(ids) <= self._slots:
      return self._store.gather(ids)
    clients = [int(i) for i in ids]
    absent = [i for i in clients if i not in self._places]
    if absent:
      found = self._store.gather(np.asarray(absent, np.int64))
      self._put(self._place(absent, clients), found)
    return _rows(self._states, self._place(clients, clients))

  def scatter(self, ids: np.ndarray, stacked: Tree, version: int) -> None:
    """Makes `stacked` [K, ...] the newest states of K clients."""
    self._store.scatter(ids, stacked, version)
    clients = [int(i) for i in ids]
    if len(clients) > self._slots:
      self._places.clear()
    elif clients:
      self._put(self._place(clients, clients), stacked)

  def rollback(self, version: int) -> None:
    """Drops everything newer than `version`."""
    self._places.clear()
    self._store.rollback(version)

  def _place(self, clients: list[int], needed: list[int]) -> np.ndarray:
    """Places of clients, int32; new ones get those of clients that were not
    used for the longest, and are not `needed` now."""
    for client in needed:
      if client in self._places:
        self._places.move_to_end(client)
    for client in clients:
      if client in self._places:
        continue
      place = len(self._places)
      if place == self._slots:
        _, place = self._places.popitem(last=False)
      self._places[client] = place
    return np.array([self._places[client] for client in clients], np.int32)

  def _put(self, places: np.ndarray, stacked: Tree) -> None:
    """Writes states [k, ...] to their places; of so many as a cohort has, that
    the number of programs does not grow with the number of absent ones."""
    fill = max(self._cohort - len(places), 0)
    if fill and not any(
      isinstance(x, jax.Array) for x in jax.tree.leaves(stacked)
    ):
      stacked = jax.tree.map(
        lambda x: np.concatenate([x, np.repeat(x[:1], fill, axis=0)]), stacked
      )
      places = np.append(places, np.full(fill, self._slots, np.int32))
    self._states = _written(self._states, places, stacked)


@compile.jit(donate=(0,), light=True)
def _written(states: Tree, places, new: Tree) -> Tree:
  """States with those of `places` replaced; a place that is none is left."""
  return jax.tree.map(
    lambda x, y: x.at[places].set(y, mode='drop'), states, new
  )


@compile.jit(light=True)
def _rows(states: Tree, places) -> Tree:
  return tree.rows(states, places)
