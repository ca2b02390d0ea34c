"""How a cohort is executed: wide vmaps, chunks of clients, or one by one.

The numbers agree to float32 rounding; what differs is speed and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.cluster.placement import Placement
from fedms_jax.core import reduction, rounds, scoring, tree
from fedms_jax.core.types import Algorithm, Plan, Roles
from fedms_jax.data.cohorts import chunks as chunks_of
from fedms_jax.simulation import timeline
from fedms_jax.simulation.cohorts import Cohort
from fedms_jax.simulation.planner import Execution


class Chunk(NamedTuple):
  """Clients computed together. places: their places in the cohort [k];
  personal, sums: [width, ...] on the device, of which the first k count."""

  places: np.ndarray
  plan: Plan
  personal: Any
  sums: dict[str, jax.Array]


def layout(
  plans: Sequence[Plan], steps: np.ndarray, how: Execution, least: int = 1
) -> list[tuple[np.ndarray, int]]:
  """Chunks of clients of one plan, of like length: their places, and lanes for
  them, at least `least`."""
  kinds = {plan: i for i, plan in enumerate(dict.fromkeys(plans))}
  kind = np.array([kinds[plan] for plan in plans])
  order = np.lexsort((-steps, kind))
  cuts = [
    i for i in range(1, len(order)) if kind[order[i]] != kind[order[i - 1]]
  ]
  groups = np.split(order, cuts)
  if how.mode == 'chunk':
    return [
      (group[places], lanes)
      for group in groups
      for places, lanes in chunks_of(steps[group], how.width, int, least)
    ]
  if how.mode == 'loop':
    groups = np.split(order, len(order))
  return [(group, len(group)) for group in groups]


class Here(NamedTuple):
  """A cohort as this process sees it: the table that it reads, the cohort's
  rows as rows of that table, and the places of the clients that are its own."""

  place: Placement
  table: dict[str, jax.Array]
  rows: np.ndarray
  places: np.ndarray


def train(
  algorithm: Algorithm,
  roles: Roles,
  server: reduction.ServerState,
  personal: Any,
  cohort: Cohort,
  here: Here,
  plans: Sequence[Plan],
  key: jax.Array,
  how: Execution,
):
  """One round: (roles, server state, chunks, measured).

  personal: [k, ...], of this process's clients. plans: one per client of the
  cohort.
  """
  place, own = here.place, here.places
  none = reduction.empty_totals(algorithm, roles.shared, len(plans[0].active))
  summing = algorithm.aggregator.reduction == 'sum'
  totals = place.empty(none) if summing else None
  chunks, apart = [], []
  mine = [plans[i] for i in own]
  for chosen, lanes in layout(mine, cohort.steps[own], how, place.width):
    places = own[chosen]
    args = _padded(cohort, here.rows, personal, chosen, places, lanes, place)
    totals, new, sums = _chunk(
      algorithm, roles, args, here, key, totals, plans[places[0]], how
    )
    chunks.append(Chunk(places, plans[places[0]], new, sums))
    if not summing:
      apart.append(totals)
      totals = None
  with timeline.span('train') as done:
    done((totals, apart))
  with timeline.span('reduce') as done:
    if summing:
      totals = place.reduce(totals)
    else:
      totals = _apart(none, apart, chunks, len(plans), place)
    shared, server, measured = reduction.close(
      algorithm, roles.shared, server, totals
    )
    roles = roles._replace(shared=shared)
    if algorithm.fold is not None:
      roles = reduction.fold(algorithm, roles, totals, key)
    return done((roles, server, chunks, measured))


def _chunk(algorithm, roles: Roles, args, here: Here, key, totals, plan, how):
  """Trains one chunk on the devices of this process."""
  ids, personal, rows, weights = args
  mesh = here.place.mesh
  function, last = rounds.train_chunk, ()
  if how.mode == 'loop':
    function, last = rounds.train_stepwise, (how.steps,)
  elif mesh is not None:
    function, last = rounds.train_spread, (mesh,)
  return function(
    algorithm,
    roles.frozen,
    roles.shared,
    personal,
    here.table,
    rows,
    weights,
    key,
    ids,
    totals,
    plan,
    *last,
  )


def _padded(cohort: Cohort, rows, personal, chosen, places, lanes: int, place):
  """(ids, personal, rows, weights) of a chunk, filled up to its lanes.

  chosen: of `personal`; places: of the cohort. The steps have room for twice
  as many at most: they are not run, but shapes are few."""
  fill = -(-lanes // place.width) * place.width - len(places)
  padded = np.concatenate([places, np.repeat(places[:1], fill)])
  room = 1 << int(cohort.steps[places].max() - 1).bit_length()
  chunk_rows = rows[padded, :room]
  missing = ((0, 0), (0, room - chunk_rows.shape[1]), (0, 0))
  chunk_rows = np.pad(chunk_rows, missing, constant_values=-1)
  weights = cohort.weights[padded]
  if fill:
    chunk_rows[-fill:], weights[-fill:] = -1, 0.0
  ids = cohort.ids[padded].astype(np.uint32)
  chosen = np.concatenate([chosen, np.repeat(chosen[:1], fill)])
  return place.split((ids, tree.rows(personal, chosen), chunk_rows, weights))


def _apart(
  none, parts, chunks, count: int, place: Placement
) -> reduction.Totals:
  """Contributions [K, ...] in the order of the cohort, of all processes; what
  a client did not contribute is zero and weighs nothing."""
  places = np.concatenate([np.zeros(0, int), *(c.places for c in chunks)])

  def stacked(leaf, *found):
    whole = jnp.zeros((count, *leaf.shape), leaf.dtype)
    if not found:
      return whole
    held = [x[: len(c.places)] for x, c in zip(found, chunks, strict=True)]
    return whole.at[places].set(jnp.concatenate(held))

  def by_key(empty, *found):
    return {
      key: jax.tree.map(stacked, value, *(f[key] for f in found if key in f))
      for key, value in empty.items()
    }

  out = reduction.Totals(
    by_key(none.values, *(part.values for part in parts)),
    by_key(none.weights, *(part.weights for part in parts)),
  )
  if place.peers.processes == 1:
    return out
  return place.whole(place.peers.summed(jax.device_get(out)))


def validate(
  algorithm: Algorithm,
  roles: Roles,
  chunks: Sequence[Chunk],
  here: Here,
  rows: np.ndarray,
  plan: Plan,
  at_once: int = 0,
) -> list[tuple[np.ndarray, dict[str, jax.Array]]]:
  """Scores of the served model on validation rows [K, V]: (places, sums).

  roles: after the round. at_once: clients scored together where nothing is
  personal; 0: all.
  """
  names = (algorithm.served,)

  def scored(personal, places, lanes=0):
    held = np.full((max(lanes, len(places)), rows.shape[1]), -1, np.int32)
    held[: len(places)] = rows[places]
    return places, score(
      algorithm, roles, personal, here.table, held, plan, names, here.place
    )

  if not len(here.places):
    return []
  if not jax.tree.leaves(chunks[0].personal):
    lanes = at_once or len(here.places)
    return [
      scored({}, here.places[i : i + lanes], lanes)
      for i in range(0, len(here.places), lanes)
    ]
  return [scored(chunk.personal, chunk.places) for chunk in chunks]


def score(
  algorithm: Algorithm,
  roles: Roles,
  personal: Any,
  table: dict[str, jax.Array],
  rows: np.ndarray,
  plan: Plan,
  names: tuple[str, ...] | None,
  place: Placement,
) -> dict[str, jax.Array]:
  """`scoring.evaluate_chunk` on the devices of this process.

  personal: of as many clients as `rows` [k, V], or of more, as a chunk has
  them. The first k of what comes back count. rows [V]: of all clients; the
  score of one of them stands for all where nothing is personal.
  """
  leaves = jax.tree.leaves(personal)
  if not leaves and rows.ndim == 1:
    rows = rows[None]
  width = len(leaves[0]) if leaves else len(rows)
  width = -(-width // place.width) * place.width
  if rows.ndim == 2:
    filled = np.full((width, rows.shape[1]), -1, np.int32)
    filled[: len(rows)] = rows
    rows = filled
  if leaves and len(leaves[0]) < width:
    at = np.minimum(np.arange(width), len(leaves[0]) - 1)
    personal = tree.rows(personal, at)
  args = (algorithm, roles.frozen, roles.shared)
  if place.mesh is None:
    return scoring.evaluate_chunk(*args, personal, table, rows, plan, names)
  personal = place.split(personal)
  rows = place.split(rows) if rows.ndim == 2 else place.whole(rows)
  return scoring.evaluate_spread(
    *args, personal, table, rows, plan, names, place.mesh
  )
