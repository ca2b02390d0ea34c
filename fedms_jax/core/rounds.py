"""THE round: the only map over clients.

A cohort is executed as chunks of clients; `train_chunk` adds a chunk to the
totals, which `reduction.close` turns into the roles of the next round. A chunk
of one client is executed without `vmap`, which is what XLA:CPU likes best. On a
mesh of devices, `train_spread` gives each device its share of a chunk and
totals of its own; `add_devices` adds them up, once per round.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedms_jax.core import client, compile, seeds
from fedms_jax.core.contract import (
  Algorithm,
  ClientResult,
  Clients,
  Received,
  Start,
  Work,
)
from fedms_jax.core.reduction import collect, sent
from fedms_jax.core.types import Plan, Roles

CLIENTS = 'clients'  # the mesh axis that clients are spread over


@compile.jit(static=(0, 1), donate=(4,))
def train_chunk(
  algorithm: Algorithm,
  plan: Plan,
  roles: Roles,
  work: Work,
  totals: Received | None,
  clients: Clients,
):
  """Trains a chunk of clients and adds what they send to the totals.

  Args:
    algorithm, plan: static.
    roles: frozen and shared; its personal part is not read.
    work, clients: see `Work` and `Clients`.
    totals: donated; None to get messages apart ('stack').

  Returns:
    (totals, personal [K, ...], sums of each client [K, 2]).
  """
  return _chunk(algorithm, plan, roles, work, totals, clients)


@compile.jit(static=(0, 1, 6), donate=(4,))
def train_spread(
  algorithm: Algorithm,
  plan: Plan,
  roles: Roles,
  work: Work,
  totals,
  clients: Clients,
  mesh: Mesh,
):
  """`train_chunk` with the clients spread over the D devices of a mesh.

  Args:
    mesh: static; its axis `CLIENTS` divides K.
    totals: [D, ...], those of each device; None for 'stack'.
  """

  def one_device(roles, work, had, clients):
    if had is not None:
      had = jax.tree.map(lambda x: x[0], had)
    totals, personal, sums = _chunk(algorithm, plan, roles, work, had, clients)
    if had is not None:
      totals = jax.tree.map(lambda x: x[None], totals)
    return totals, personal, sums

  whole, split = P(), P(CLIENTS)
  return mapped_over(mesh, (whole, whole, split, split), split)(one_device)(
    roles._replace(personal=None), work, totals, clients
  )


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


def _chunk(algorithm, plan, roles: Roles, work: Work, totals, clients: Clients):
  """The body of `train_chunk`."""
  # Known to the device alone, or each number of steps would be compiled.
  steps = jnp.sum(jnp.any(clients.rows >= 0, axis=(0, 2)))
  keys = seeds.per_client(work.key, clients.ids)

  def one(its: Clients, key):
    start = Start(roles._replace(personal=its.personal), plan, work.moment)
    start = client.with_fresh(algorithm, start, work.table, its.fresh)
    result = client.run(algorithm, start, work.table, its.rows, key, steps)
    return sent(algorithm, start, result, its.weights, key, work.channel)

  messages, counts, personal, sums = over_clients(one)(clients, keys)
  totals = collect(algorithm, totals, messages, counts, plan)
  return totals, personal, sums


def over_clients(function):
  """`vmap` over the leading axis; a single client is run without it."""

  def mapped(*args):
    count = len(jax.tree.leaves(args)[-1])
    if count > 1:
      return jax.vmap(function)(*args)
    out = function(*jax.tree.map(lambda x: x[0], args))
    return jax.tree.map(lambda x: x[None], out)

  return mapped


def train_stepwise(
  algorithm: Algorithm,
  plan: Plan,
  roles: Roles,
  work: Work,
  totals,
  clients: Clients,
  together: int = 1,
):
  """`train_chunk` for one client, without a loop in the compiled programs.

  No padded step is executed, nothing is compiled per number of steps, and
  convolutions stay outside loops: the way to run on XLA:CPU.

  together: steps in a row that are one program; what is left over is run one
  by one.
  """
  roles = roles._replace(
    personal=jax.tree.map(lambda x: x[0], clients.personal)
  )
  total = int((np.asarray(clients.rows)[0] >= 0).any(axis=1).sum())
  work = work._replace(moment=work.moment._replace(steps=total))
  key, carry = _begin_stepwise(
    algorithm, plan, roles, work.key, clients.ids[0], work.moment
  )
  fresh = None if clients.fresh is None else clients.fresh[0]
  number = 0
  while number < total:
    size = together if number + together <= total else 1
    rows = clients.rows[0][number : number + size]
    carry = _steps(
      algorithm, plan, carry, roles, work, key, rows, number, fresh
    )
    number += size
  return _finish_stepwise(
    algorithm, plan, carry, totals, roles, work, key, clients.weights, fresh
  )


@compile.jit(static=(0, 1), light=True)
def _begin_stepwise(algorithm, plan, roles, key, identity, moment):
  state = algorithm.update.begin(Start(roles, plan, moment))
  sums = client.zero_sums(algorithm)
  return jax.random.fold_in(key, identity), (state, sums)


@compile.jit(static=(0, 1), donate=(2,))
def _steps(algorithm, plan, carry, roles, work: Work, key, rows, number, fresh):
  """Steps on row numbers [n, B], one after another."""
  start = Start(roles, plan, work.moment)
  start = client.with_fresh(algorithm, start, work.table, fresh)
  for i, row in enumerate(rows):
    now = client.at_step(start, number + i)
    carry = client.one_step(algorithm, carry, now, work.table, row, key)
  return carry


@compile.jit(static=(0, 1), donate=(3,))
def _finish_stepwise(
  algorithm, plan, carry, totals, roles, work, key, weights, fresh
):
  state, sums = carry
  start = Start(roles, plan, work.moment)
  start = client.with_fresh(algorithm, start, work.table, fresh)
  message, personal = algorithm.update.finish(state, start)
  result = ClientResult(message, personal, sums)
  message, counts, personal, sums = jax.tree.map(
    lambda x: x[None],
    sent(algorithm, start, result, weights[0], key, work.channel),
  )
  totals = collect(algorithm, totals, message, counts, plan)
  return totals, personal, sums
