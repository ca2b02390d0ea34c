"""How a cohort is executed: wide vmaps, chunks of clients, or one by one.

The numbers agree to float32 rounding; what differs is speed and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax import rounds, tree
from fedms_jax.base import Algorithm, Backbone, Plan, Roles
from fedms_jax.data.cohorts import bucket
from fedms_jax.simulation.cohorts import Cohort


class Execution(NamedTuple):
  """mode: vmap, chunk or loop. width: clients per chunk, for chunk."""

  mode: str
  width: int


class Chunk(NamedTuple):
  """Clients computed together. places: their places in the cohort [k];
  personal, sums: [width, ...] on the device, of which the first k count."""

  places: np.ndarray
  plan: Plan
  personal: Any
  sums: dict[str, jax.Array]


def choose(
  wanted: str, width: int, backbone: Backbone, batch: int, roles: Roles
) -> Execution:
  """The execution for this back-end.

  XLA:CPU is fastest with one client at a time. An accelerator gets as many
  clients as half of its free memory holds, by the activations of a step.
  """
  if wanted in ('vmap', 'loop'):
    return Execution(wanted, 1)
  if wanted == 'auto' and jax.default_backend() == 'cpu' and not width:
    return Execution('loop', 1)
  if not width:
    width = _fitting(backbone, batch, roles)
  return Execution('chunk', width)


def _fitting(backbone: Backbone, batch: int, roles: Roles) -> int:
  stats = jax.local_devices()[0].memory_stats() or {}
  free = stats.get('bytes_limit', 8e9) - stats.get('bytes_in_use', 0)
  stream = 4.0 * backbone.cost.tokens * backbone.width
  kept = backbone.blocks * backbone.cost.activation + stream
  trained = tree.nbytes((roles.shared, roles.personal))
  return max(1, int(free / 2 / (batch * kept + 6 * trained)))


def layout(
  plans: Sequence[Plan], steps: np.ndarray, how: Execution
) -> list[np.ndarray]:
  """Places of the cohort in chunks: clients of one plan, of like length."""
  width = {'loop': 1, 'vmap': len(plans)}.get(how.mode, how.width)
  kinds = {plan: i for i, plan in enumerate(dict.fromkeys(plans))}
  kind = np.array([kinds[plan] for plan in plans])
  order = np.lexsort((-steps, kind))
  cuts = [
    i for i in range(1, len(order)) if kind[order[i]] != kind[order[i - 1]]
  ]
  return [
    group[i : i + width]
    for group in np.split(order, cuts)
    for i in range(0, len(group), width)
  ]


def train(
  algorithm: Algorithm,
  roles: Roles,
  server: rounds.ServerState,
  personal: Any,
  table: dict[str, jax.Array],
  cohort: Cohort,
  rows: np.ndarray,
  plans: Sequence[Plan],
  key: jax.Array,
  how: Execution,
):
  """One round: (roles, server state, chunks, measured).

  personal: [K, ...] in the order of the cohort. rows: the cohort's rows as
  rows of `table`. plans: one per client.
  """
  summing = algorithm.aggregator.reduction == 'sum'
  blocks = len(plans[0].active)
  totals = (
    rounds.empty_totals(algorithm, roles.shared, blocks) if summing else None
  )
  chunks, apart = [], []
  function = rounds.train_stepwise if how.mode == 'loop' else rounds.train_chunk
  for places in layout(plans, cohort.steps, how):
    plan = plans[places[0]]
    width = how.width if how.mode == 'chunk' else len(places)
    args = _padded(cohort, rows, personal, places, width)
    ids, chunk_personal, chunk_rows, weights = args
    out, new, sums = function(
      algorithm,
      roles.frozen,
      roles.shared,
      chunk_personal,
      table,
      chunk_rows,
      weights,
      key,
      ids,
      totals,
      plan,
    )
    totals = out if summing else None
    apart.append(out)
    chunks.append(Chunk(places, plan, new, sums))
  if not summing:
    totals = jax.tree.map(lambda *xs: jnp.concatenate(xs), *apart)
  shared, server, measured = rounds.close(
    algorithm, roles.shared, server, totals
  )
  roles = roles._replace(shared=shared)
  if algorithm.fold is not None:
    roles = rounds.fold(algorithm, roles, totals, key)
  return roles, server, chunks, measured


def _padded(cohort: Cohort, rows, personal, places, width: int):
  """(ids, personal, rows, weights) of a chunk, filled up to its width."""
  fill = width - len(places)
  padded = np.concatenate([places, np.repeat(places[:1], fill)])
  steps = bucket(cohort.steps[places].max())
  chunk_rows = rows[padded, :steps]
  weights = cohort.weights[padded]
  if fill:
    chunk_rows[-fill:], weights[-fill:] = -1, 0.0
  ids = cohort.ids[padded].astype(np.uint32)
  return ids, tree.rows(personal, padded), chunk_rows, weights


def validate(
  algorithm: Algorithm,
  roles: Roles,
  chunks: Sequence[Chunk],
  table: dict[str, jax.Array],
  rows: np.ndarray,
  plan: Plan,
) -> list[tuple[np.ndarray, dict[str, jax.Array]]]:
  """Scores of the served model on validation rows [K, V]: (places, sums).

  roles: after the round. Without a personal part, all clients at once.
  """
  names = (algorithm.served,)
  frozen, shared = roles.frozen, roles.shared
  if not jax.tree.leaves(chunks[0].personal):
    places = np.arange(len(rows))
    sums = rounds.evaluate_chunk(
      algorithm, frozen, shared, {}, table, rows, plan, names
    )
    return [(places, sums)]
  out = []
  for chunk in chunks:
    width = len(jax.tree.leaves(chunk.sums)[0])
    chunk_rows = np.full((width, rows.shape[1]), -1, np.int32)
    chunk_rows[: len(chunk.places)] = rows[chunk.places]
    sums = rounds.evaluate_chunk(
      algorithm,
      frozen,
      shared,
      chunk.personal,
      table,
      chunk_rows,
      plan,
      names,
    )
    out.append((chunk.places, sums))
  return out
