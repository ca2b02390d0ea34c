"""THE round: the only map over clients.

A cohort is executed as chunks of clients; `train` adds a chunk to the totals,
which `reduction.close` turns into the roles of the next round. The loop over
local steps is on the host, which knows their number: it dispatches one program
after another and never waits, as a loop of unknown length on the device would.
So no number of steps is compiled, and no step that nobody has is run.

A chunk of one client is executed without `vmap`, as XLA:CPU likes it. On a
mesh, each device has its share of a chunk and totals of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedms_jax.core import client, compile, seeds, tree
from fedms_jax.core.contract import (
  Algorithm,
  ClientResult,
  Clients,
  Received,
  Start,
  Work,
)
from fedms_jax.core.meshes import CLIENTS, on_each
from fedms_jax.core.reduction import collect, sent
from fedms_jax.core.types import Plan, Roles, Tree

_WHOLE, _SPLIT = P(), P(CLIENTS)


class Carry(NamedTuple):
  """What clients of a chunk carry from step to step, [K, ...]; of one alone,
  without this axis.

  keys: of each client. state: of the client updates. sums: metrics so far.
  """

  keys: Any
  state: Tree
  sums: dict[str, Any]


def train(
  algorithm: Algorithm,
  plan: Plan,
  roles: Roles,
  work: Work,
  totals: Received | None,
  clients: Clients,
  *,
  together: int = 1,
  mesh: Mesh | None = None,
):
  """Trains a chunk of clients and adds what they send to the totals.

  Args:
    algorithm, plan: static.
    roles: frozen and shared; its personal part is not read.
    work, clients: see `Work` and `Clients`. Rows are the host's; padded steps
      come after all others.
    totals: donated; those of each device, [D, ...], on a mesh; None to get
      messages apart ('stack').
    together: steps in a row that are one program; what is left over is run one
      by one.
    mesh: whose axis `CLIENTS` divides K; None: one device.

  Returns:
    (totals, personal [K, ...], sums of each client [K, 2]).
  """
  roles = roles._replace(personal=None)
  rows = np.asarray(clients.rows)
  steps = (rows >= 0).any(axis=2).sum(axis=1).astype(np.int32)
  whole = clients._replace(rows=None)
  its = whole._replace(stale=None)  # which steps do not look at
  static = algorithm, plan, mesh
  carry = begin_chunk(*static, roles, work, its, steps)
  number, last = 0, int(steps.max())
  while number < last:
    size = together if number + together <= last else 1
    some = its._replace(rows=rows[:, number : number + size])
    carry = step_chunk(
      *static, carry, roles, work, some, steps, np.int32(number)
    )
    number += size
  return finish_chunk(*static, totals, carry, roles, work, whole, steps)


@compile.jit(static=(0, 1, 2), light=True)
def begin_chunk(
  algorithm: Algorithm,
  plan: Plan,
  mesh: Mesh | None,
  roles: Roles,
  work: Work,
  clients: Clients,
  steps,
) -> Carry:
  """What a chunk carries into its first step. steps: of each client [K]."""
  alone = _alone(mesh, clients)

  def one_device(roles, work, clients, steps):
    def one(its: Clients, steps):
      state = algorithm.update.begin(
        _start(algorithm, plan, roles, work, its, steps)
      )
      return state, client.zero_sums(algorithm)

    keys = seeds.per_client(work.key, clients.ids)
    carry = Carry(keys, *over_clients(one)(clients, steps))
    return jax.tree.map(lambda x: x[0], carry) if alone else carry

  inputs = _WHOLE, _WHOLE, _SPLIT, _SPLIT
  return on_each(mesh, one_device, inputs)(roles, work, clients, steps)


@compile.jit(static=(0, 1, 2), donate=(3,))
def step_chunk(
  algorithm: Algorithm,
  plan: Plan,
  mesh: Mesh | None,
  carry: Carry,
  roles: Roles,
  work: Work,
  clients: Clients,
  steps,
  number,
) -> Carry:
  """Steps on row numbers [K, n, B], one after another, from step `number`.

  carry: donated; a client that has taken its own `steps` [K] keeps it.
  """
  alone = _alone(mesh, clients)  # and takes all steps that are run

  def one_device(carry, roles, work, clients, steps, number):
    def one(state, its: Clients, steps, key):
      start = _start(algorithm, plan, roles, work, its, steps)
      for i, row in enumerate(its.rows):
        now = client.at_step(start, number + i)
        new = client.one_step(algorithm, state, now, work.table, row, key)
        state = new if alone else tree.where(number + i < steps, new, state)
      return state

    state = carry.state, carry.sums
    if alone:
      its, steps = jax.tree.map(lambda x: x[0], (clients, steps))
      return Carry(carry.keys, *one(state, its, steps, carry.keys))
    state = over_clients(one)(state, clients, steps, carry.keys)
    return Carry(carry.keys, *state)

  inputs = _SPLIT, _WHOLE, _WHOLE, _SPLIT, _SPLIT, _WHOLE
  return on_each(mesh, one_device, inputs)(
    carry, roles, work, clients, steps, number
  )


@compile.jit(static=(0, 1, 2), donate=(3,), light=True)
def finish_chunk(
  algorithm: Algorithm,
  plan: Plan,
  mesh: Mesh | None,
  totals: Received | None,
  carry: Carry,
  roles: Roles,
  work: Work,
  clients: Clients,
  steps,
):
  """What comes of a chunk after its last step, see `train`."""

  alone = _alone(mesh, clients)

  def one_device(totals, carry, roles, work, clients, steps):
    if alone:
      carry = jax.tree.map(lambda x: x[None], carry)

    def one(state, sums, its: Clients, steps, key):
      start = _start(algorithm, plan, roles, work, its, steps)
      message, personal = algorithm.update.finish(state, start)
      result = ClientResult(message, personal, sums)
      return sent(algorithm, start, result, its, key, work.channel)

    messages, counts, personal, sums = over_clients(one)(
      carry.state, carry.sums, clients, steps, carry.keys
    )
    new = messages, counts, plan, clients.stale
    if mesh is None or totals is None:
      return collect(algorithm, totals, *new), personal, sums
    totals = jax.tree.map(lambda x: x[0], totals)
    totals = collect(algorithm, totals, *new)
    return jax.tree.map(lambda x: x[None], totals), personal, sums

  inputs = _SPLIT, _SPLIT, _WHOLE, _WHOLE, _SPLIT, _SPLIT
  return on_each(mesh, one_device, inputs)(
    totals, carry, roles, work, clients, steps
  )


def _alone(mesh: Mesh | None, clients: Clients) -> bool:
  """Whether a chunk is a single client's."""
  return mesh is None and len(clients.ids) == 1


def _start(
  algorithm: Algorithm,
  plan: Plan,
  roles: Roles,
  work: Work,
  its: Clients,
  steps,
) -> Start:
  """What one client begins a round with, that takes so many steps."""
  moment = work.moment._replace(steps=steps)
  start = Start(roles._replace(personal=its.personal), plan, moment)
  return client.with_fresh(algorithm, start, work.table, its.fresh)


def over_clients(function) -> Callable[..., Any]:
  """`vmap` over the leading axis; a single client is run without it."""

  def mapped(*args):
    count = len(jax.tree.leaves(args)[-1])
    if count > 1:
      return jax.vmap(function)(*args)
    out = function(*jax.tree.map(lambda x: x[0], args))
    return jax.tree.map(lambda x: x[None], out)

  return mapped
