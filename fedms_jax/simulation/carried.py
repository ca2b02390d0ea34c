"""What clients take over of their personal states of the stage before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core.types import Roles, Tree
from fedms_jax.simulation import timeline
from fedms_jax.simulation.state import Stage, StageState


def store(
  run_store: Any, stages: Sequence[Stage], roles: Roles, state: StageState
) -> Any:
  """The store of the stage of a state. roles: before the first stage."""
  stage, initial = stages[state.stage], state.roles.personal
  found = run_store.store(stage.folder, initial)
  if stage.carry is None or not state.stage:
    return found
  before = stages[state.stage - 1].folder
  shapes = personal_shapes(roles, stages[: state.stage])
  there = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  return Carried(found, run_store.store(before, there), initial, stage.carry)


def personal_shapes(roles: Roles, stages: Sequence[Stage]) -> Tree:
  """Shapes of a client's personal tree in the last of these stages."""
  for stage in stages:
    begin = stage.algorithm.begin
    roles = jax.eval_shape(begin, jax.random.key(0), roles)
  return roles.personal


def keep(store: Any, cohort: Any, chunks: Sequence[Any], version: int) -> None:
  """Stores what the clients of a cohort have become."""
  with timeline.span('store'):
    for chunk in chunks:
      count, kept = len(chunk.places), chunk.personal
      if count < len(chunk.sums['skipped']):
        kept = jax.tree.map(lambda x, n=count: x[:n], kept)
      store.scatter(cohort.ids[chunk.places], kept, version)


class Carried:
  """The store of a stage, whose clients begin with what they had before.

  A client that the stage has not stored yet gets carry(its state of the stage
  before, `initial`), or `initial` if it has none. Everything else is the
  store's.
  """

  def __init__(
    self,
    store: Any,
    before: Any,
    initial: Tree,
    carry: Callable[[Tree, Tree], Tree],
  ):
    self._store, self._before, self._initial = store, before, initial
    self._carry = jax.jit(carry)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._store, name)

  def gather(self, ids: np.ndarray) -> Tree:
    """The states of K clients [K, ...]."""
    found = self._store.gather(ids)
    new = ~self._store.holds(ids) & self._before.holds(ids)
    for place in np.flatnonzero(new):
      mine = self._before.gather(ids[place : place + 1])
      mine = jax.tree.map(lambda x: x[0], mine)
      made = self._carry(mine, self._initial)
      found = jax.tree.map(
        lambda all, one, at=place: jnp.asarray(all).at[at].set(one), found, made
      )
    return found
