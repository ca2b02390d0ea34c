"""Who is evaluated, on which rows: clients with their models, a few at a
time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from fedms_jax.core import arrays, inner_state, tree
from fedms_jax.core.compile import Program
from fedms_jax.core.scoring import Look
from fedms_jax.simulation import execution


class Readers:
  """Clients with their models; this process evaluates its `own`.

  scope: `evaluation.Scope`. ids: whose personal states are used; None: the one
  that everybody starts with. count: how many they are.
  """

  def __init__(self, simulation, state, scope: Any, ids, count: int):
    stage, place = simulation.stages[state.stage], simulation.place
    of = simulation.federation.train.num_clients
    self.own = (
      place.mine(np.arange(count), count)
      if ids is None
      else place.mine(ids, of)
    )
    self._simulation, self._state, self._ids = simulation, state, ids
    self._plan = simulation.plan(state)
    self._look = Look(stage.algorithm, self._plan, scope.names, scope.metrics)

  def score(self, personal, rows) -> dict[str, jax.Array]:
    """Sums [width, ...] of clients on rows [width, V], or on rows [V] that all
    of them read; on the device."""
    simulation, roles = self._simulation, self._state.roles
    table, translate = simulation.tables.view(
      self._look.algorithm, roles, rows, self._plan, usual=False
    )
    return execution.score(
      self._look, roles, personal, table, translate(rows), simulation.place
    )

  def personal(self, chosen, width: int):
    """The personal states of the `chosen` readers [k], filled up to `width`."""
    if not inner_state.model(self._state.roles.personal):
      return {}  # what clients keep is no part of their models
    if self._ids is None or not len(chosen):
      return arrays.repeated(self._state.roles.personal, width)
    return self._store.gather(self._ids[np.resize(chosen, width)])

  @functools.cached_property
  def _store(self):
    return self._simulation.store(self._state)

  def program(self, width: int, shape) -> Program | None:
    """What `score` calls for so many clients on rows of a shape, in shapes;
    None: what table it reads is not known before."""
    simulation, rows = self._simulation, np.zeros(shape, np.int32)
    roles = tree.shapes(self._state.roles)
    table = simulation.tables.foreseen(
      self._look.algorithm, roles, rows, self._plan
    )
    if table is None or simulation.place.mesh is not None:
      return None
    own = tree.shapes(roles.personal if personal(self._state) else {}, width)
    return execution.reading(
      self._look, roles, own, table, rows, simulation.place
    )


def personal(state) -> bool:
  """Whether anything of a client's model is its own."""
  return bool(jax.tree.leaves(inner_state.model(state.roles.personal)))


def by_length(own, rows, width: int):
  """(positions, how many columns of their rows hold any), those with most rows
  first. own: the positions that are looked at, of rows [n, V]."""
  sizes = (rows >= 0).sum(axis=1)
  order = own[np.argsort(-sizes[own], kind='stable')]
  for chosen in chunks(order, width):
    yield chosen, _columns(rows.shape[1], sizes[chosen])


def chunks(places, width: int):
  """The positions, a chunk at a time. A process without clients runs once on
  padding, to learn the names of the metrics."""
  for start in range(0, max(len(places), 1), width):
    yield places[start : start + width]


def _columns(most: int, sizes) -> int:
  """How many columns of rows to look at, if only so many hold any. They go
  down in quarters, so that there are few shapes to compile; a table of a few
  columns is not worth a second one."""
  while most >= 64 and len(sizes) and sizes.max() <= most // 4:
    most //= 4
  return most
