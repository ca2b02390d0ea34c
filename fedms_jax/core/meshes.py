"""What is the same on each device of a mesh: its share of the clients."""

from __future__ import annotations

import functools

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedms_jax.core import compile
from fedms_jax.core.contract import Received

CLIENTS = 'clients'  # the mesh axis that clients are spread over


def on_each(mesh: Mesh | None, function, inputs):
  """The function on one device, or on each of a mesh with its own clients."""
  if mesh is None:
    return function
  return mapped_over(mesh, inputs, P(CLIENTS))(function)


def mapped_over(mesh: Mesh, inputs, outputs):
  """`shard_map` over the clients' axis; the compiler sees to other axes."""
  # Axes of one device split nothing; but were they the compiler's, it would
  # have to partition cuDNN's attention, which it cannot inside of this map.
  manual = {a for a, size in mesh.shape.items() if a == CLIENTS or size == 1}
  return functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=inputs,
    out_specs=outputs,
    axis_names=manual,
    check_vma=False,
  )


@compile.jit(static=(1,), light=True)
def add_devices(totals: Received, mesh: Mesh) -> Received:
  """The sum of totals [D, ...] over the devices of a mesh, on all of them."""

  def one_device(totals):
    mine = jax.tree.map(lambda x: x[0], totals)
    return jax.lax.psum(mine, CLIENTS)

  return mapped_over(mesh, P(CLIENTS), P())(one_device)(totals)
