"""Where things are: clients on processes and devices, values on devices.

A run has a mesh of its process's devices, with the axes `clients` and
`model`. Each device trains its share of a chunk of clients; each process has
the clients of its own, and their rows and personal states, and no others. The
totals of a round are added up over all devices of all processes at once, by
one all-reduce.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedms_jax.cluster.processes import SingleProcess
from fedms_jax.core import meshes
from fedms_jax.core.types import Tree

MODEL = 'model'  # the mesh axis that frozen weights are split over


class Placement:
  """The devices and the clients of this process.

  devices: how many devices of this process train; 0: all of an accelerator,
  one of a CPU. model: over how many of them each frozen weight is split.
  width: devices that clients are spread over. mesh: None with one device.

  Raises:
    ValueError: there are not so many devices, or `model` does not divide them.
  """

  def __init__(
    self, devices: int = 1, model: int = 1, peers: SingleProcess | None = None
  ):
    self.peers = peers or SingleProcess()
    found = jax.local_devices()
    if not devices:
      devices = 1 if found[0].platform == 'cpu' else len(found)
    if devices > len(found):
      raise ValueError(
        f'`Placement.devices`={devices}, but this process sees {len(found)}: '
        f'{found}. Lower it, or 0 for all.'
      )
    if devices % model:
      raise ValueError(
        f'`Placement.model`={model} does not divide the {devices} devices '
        'of this process. Change one of them.'
      )
    self.width = devices // model
    self.mesh: Mesh | None = None
    if devices > 1:
      grid = np.array(found[:devices]).reshape(self.width, model)
      self.mesh = Mesh(grid, (meshes.CLIENTS, MODEL))
    self._devices = found[:devices:model]

  def mine(self, ids: np.ndarray, clients: int) -> np.ndarray:
    """Positions of the ids that belong to this process; `clients` is the total.

    Neighbors in number belong together: the table is sorted by client, so a
    process reads consecutive rows.
    """
    owner = ids.astype(np.int64) * self.peers.processes // max(clients, 1)
    return np.flatnonzero(owner == self.peers.process_id)

  def whole(self, tree: Tree) -> Tree:
    """A tree with a copy on each device."""
    return self._put(tree, lambda x: P())

  def split(self, tree: Tree) -> Tree:
    """A tree [K, ...] with its clients spread over the devices."""
    return self._put(tree, lambda x: P(meshes.CLIENTS))

  def frozen(self, tree: Tree) -> Tree:
    """Frozen values: large matrices are split over the model axis, by their
    last dimension, where it divides them."""
    shards = 1 if self.mesh is None else self.mesh.shape[MODEL]
    if shards == 1:
      return self.whole(tree)

    def spec(x):
      if np.ndim(x) < 2 or x.shape[-1] % shards:
        return P()
      return P(*[None] * (np.ndim(x) - 1), MODEL)

    return self._put(tree, spec)

  def empty(self, totals: Tree) -> Tree:
    """Zero totals [D, ...] for all devices, from those of one device."""
    if self.mesh is None:
      return totals
    return self.split(
      jax.tree.map(lambda x: np.zeros((self.width, *x.shape), x.dtype), totals)
    )

  def reduce(self, totals: Tree) -> Tree:
    """The sum of totals over all devices of all processes."""
    if self.peers.processes == 1:
      if self.mesh is None:
        return totals
      return meshes.add_devices(totals, self.mesh)
    if self.mesh is None:
      totals = jax.tree.map(lambda x: x[None], totals)
    everywhere = Mesh(np.array(self._all_devices()), (meshes.CLIENTS,))
    out = meshes.add_devices(self._global(totals, everywhere), everywhere)
    return jax.tree.map(self._local, out)

  def _all_devices(self) -> list:
    """Devices that hold totals, of all processes in order."""
    by_process: dict[int, list] = {}
    for device in jax.devices():
      by_process.setdefault(device.process_index, []).append(device)
    step = 1 if self.mesh is None else self.mesh.shape[MODEL]
    return [
      device
      for number in sorted(by_process)
      for device in by_process[number][: self.width * step : step]
    ]

  def _global(self, totals: Tree, mesh: Mesh) -> Tree:
    """Arrays [D of all processes, ...] from the local ones [D, ...]."""
    sharding = NamedSharding(mesh, P(meshes.CLIENTS))
    count = len(mesh.devices)

    def assemble(x):
      if self.mesh is not None:  # the compiler may have split it over `model`
        x = self.split(x)
      on = {s.device: s.data for s in x.addressable_shards}
      parts = [on[device] for device in self._devices]
      return jax.make_array_from_single_device_arrays(
        (count, *x.shape[1:]), sharding, parts
      )

    return jax.tree.map(assemble, totals)

  def _local(self, x):
    """This process's copy of an array that all processes have."""
    copy = x.addressable_shards[0].data
    return copy if self.mesh is None else self.whole(copy)

  def _put(self, tree: Tree, spec) -> Tree:
    mesh = self.mesh
    if mesh is None:
      return tree
    return jax.tree.map(
      lambda x: jax.device_put(x, NamedSharding(mesh, spec(x))), tree
    )
