"""THE round: the only map over clients.

A cohort is executed as chunks of clients; `train_chunk` adds a chunk to the
totals, which `reduction.close` turns into the next shared tree. A chunk of one
client is executed without `vmap`, which is what XLA:CPU likes best. On a mesh
of devices, `train_spread` gives each device its share of a chunk and totals
of its own; `add_devices` adds them up, once per round.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedms_jax.core import client, compile, seeds, tree
from fedms_jax.core.reduction import Totals, collect
from fedms_jax.core.types import Algorithm, ClientResult, Plan, Roles

CLIENTS = 'clients'  # the mesh axis that clients are spread over


def train_one(
  algorithm,
  frozen,
  shared,
  personal,
  table,
  rows,
  weight,
  key,
  plan: Plan,
  steps=None,
):
  """One client's training and contribution: (contribution, weight, personal,
  sums). A client whose result is not finite contributes nothing and keeps
  its personal state."""
  roles = Roles(frozen, shared, personal)
  result = client.run(algorithm, roles, table, rows, key, plan, steps)
  return contribution(algorithm, roles, result, weight, plan)


def contribution(
  algorithm: Algorithm, roles: Roles, result: ClientResult, weight, plan: Plan
):
  """What the server adds up of a client's result; see `train_one`."""
  finite = tree.all_finite((result.shared, result.personal, result.sums))
  before = tree.narrow(roles.shared, algorithm.masks(plan)[0])
  value = algorithm.aggregator.contribute(before, result.shared, weight)
  value = tree.where(finite, value, jax.tree.map(jnp.zeros_like, value))
  personal = tree.where(finite, result.personal, roles.personal)
  skipped = jnp.stack([1.0 - finite, jnp.float32(1)])
  skipped = jnp.where(weight > 0, skipped, 0.0)
  sums = tree.where(
    finite & (weight > 0),
    result.sums,
    jax.tree.map(jnp.zeros_like, result.sums),
  )
  return (
    value,
    jnp.where(finite, weight, 0.0),
    personal,
    sums | {'skipped': skipped},
  )


@compile.jit(static=(0, 10), donate=(9,))
def train_chunk(
  algorithm: Algorithm,
  frozen,
  shared,
  personal,
  table,
  rows,
  weights,
  key,
  ids,
  totals,
  plan: Plan,
):
  """Trains a chunk of clients and adds it to the totals.

  Args:
    algorithm: static. frozen, shared: unbatched. personal: [K, ...].
    table: columns [M, ...]. rows: int32 [K, S, B]. weights: float32 [K], 0
      for a client that only pads the chunk. key: the round's key. ids: int32
      [K]. totals: donated; None to get contributions apart ('stack').
    plan: static.

  Returns:
    (totals, personal [K, ...], sums of each client [K, 2]).
  """
  return _chunk(
    algorithm,
    frozen,
    shared,
    personal,
    table,
    rows,
    weights,
    key,
    ids,
    totals,
    plan,
  )


@compile.jit(static=(0, 10, 11), donate=(9,))
def train_spread(
  algorithm: Algorithm,
  frozen,
  shared,
  personal,
  table,
  rows,
  weights,
  key,
  ids,
  totals,
  plan: Plan,
  mesh: Mesh,
):
  """`train_chunk` with the clients spread over the D devices of a mesh.

  Args:
    mesh: static; its axis `CLIENTS` divides K. totals: [D, ...], those of
      each device; None for 'stack'. The others as in `train_chunk`.
  """

  def one_device(frozen, shared, table, key, personal, rows, weights, ids, had):
    if had is not None:
      had = jax.tree.map(lambda x: x[0], had)
    totals, personal, sums = _chunk(
      algorithm,
      frozen,
      shared,
      personal,
      table,
      rows,
      weights,
      key,
      ids,
      had,
      plan,
    )
    if had is not None:
      totals = jax.tree.map(lambda x: x[None], totals)
    return totals, personal, sums

  whole, split = P(), P(CLIENTS)
  return mapped_over(mesh, (whole,) * 4 + (split,) * 5, split)(one_device)(
    frozen, shared, table, key, personal, rows, weights, ids, totals
  )


def mapped_over(mesh: Mesh, inputs, outputs):
  """`shard_map` over the clients' axis; the compiler sees to other axes."""
  return functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=inputs,
    out_specs=outputs,
    axis_names={CLIENTS},
    check_vma=False,
  )


@compile.jit(static=(1,), light=True)
def add_devices(totals: Totals, mesh: Mesh) -> Totals:
  """The sum of totals [D, ...] over the devices of a mesh, on all of them."""

  def one_device(totals):
    mine = jax.tree.map(lambda x: x[0], totals)
    return jax.lax.psum(mine, CLIENTS)

  return mapped_over(mesh, P(CLIENTS), P())(one_device)(totals)


def _chunk(
  algorithm,
  frozen,
  shared,
  personal,
  table,
  rows,
  weights,
  key,
  ids,
  totals,
  plan,
):
  """The body of `train_chunk`."""
  keys = seeds.per_client(key, ids)
  # Known to the device alone, or each number of steps would be compiled.
  steps = jnp.sum(jnp.any(rows >= 0, axis=(0, 2)))
  one = functools.partial(train_one, algorithm, frozen, shared)

  def mapped(personal, rows, weight, key):
    return one(personal, table, rows, weight, key, plan, steps)

  values, counted, personal, sums = over_clients(mapped)(
    personal, rows, weights, keys
  )
  return collect(algorithm, totals, values, counted, plan), personal, sums


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
  frozen,
  shared,
  personal,
  table,
  rows,
  weights,
  key,
  ids,
  totals,
  plan: Plan,
  together: int = 1,
):
  """`train_chunk` for one client, without a loop in the compiled programs.

  No padded step is executed, nothing is compiled per number of steps, and
  convolutions stay outside loops: the way to run on XLA:CPU.

  together: steps in a row that are one program; what is left over is run one
  by one.
  """
  roles = Roles(frozen, shared, jax.tree.map(lambda x: x[0], personal))
  key, carry = _begin_stepwise(algorithm, roles, table, key, ids[0], plan)
  total = int((np.asarray(rows)[0] >= 0).any(axis=1).sum())
  number = 0
  while number < total:
    size = together if number + together <= total else 1
    some = rows[0][number : number + size]
    carry = _steps(
      algorithm, carry, roles, table, some, key, number, total, plan
    )
    number += size
  return _finish_stepwise(algorithm, carry, roles, weights, totals, plan)


@compile.jit(static=(0, 5), light=True)
def _begin_stepwise(algorithm, roles, table, key, identity, plan):
  state = algorithm.update.begin(roles, plan)
  sums = client.zero_sums(algorithm)
  return jax.random.fold_in(key, identity), (state, sums)


@compile.jit(static=(0, 8), donate=(1,))
def _steps(algorithm, carry, roles, table, rows, key, number, total, plan):
  """Steps on row numbers [n, B], one after another."""
  for i, row in enumerate(rows):
    carry = client.one_step(
      algorithm, carry, roles, table, row, key, number + i, total, plan
    )
  return carry


@compile.jit(static=(0, 5), donate=(4,))
def _finish_stepwise(algorithm, carry, roles, weights, totals, plan):
  state, sums = carry
  shared, personal = algorithm.update.finish(state, roles, plan)
  result = ClientResult(shared, personal, sums)
  value, counted, personal, sums = jax.tree.map(
    lambda x: x[None], contribution(algorithm, roles, result, weights[0], plan)
  )
  return collect(algorithm, totals, value, counted, plan), personal, sums
