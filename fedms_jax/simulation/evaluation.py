"""The one evaluation contract: own test rows, pooled test set, newcomers.

A personal model is evaluated as its client has it; a client that was never
sampled has the personal state that everybody starts with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax import metrics, rounds
from fedms_jax.base import Partition
from fedms_jax.data import cohorts


class Scope(NamedTuple):
  """How much is evaluated: at most this many clients and pooled rows.

  width: clients evaluated together.
  """

  clients: int = 200
  pooled_rows: int = 1000
  width: int = 8


def evaluate(simulation, state, scope: Scope) -> dict[str, Any]:
  """Scores of every model of the last stage.

  Returns:
    {'models': {name: {own_mean, own_worst_decile, own_std, pooled, unseen}},
    'gate_weight', 'gate_entropy' if there is a gate, 'clients',
    'pooled_rows', 'unseen_clients', 'per_client': {name: scores [N]}}.
  """
  federation, seed = simulation.federation, simulation.options.seed
  ids = _some(federation.test.num_clients, scope.clients, seed)
  pooled = federation.pooled[
    _some(len(federation.pooled), scope.pooled_rows, seed)
  ]
  unseen = np.arange(federation.unseen.num_clients)
  own = _scores(simulation, state, scope, ids, _rows(federation.test, ids))
  personal = bool(jax.tree.leaves(state.roles.personal))
  readers = ids if personal else ids[:1]
  wide = np.broadcast_to(pooled, (len(readers), len(pooled)))
  whole = _scores(simulation, state, scope, readers, wide)
  new = {}
  if len(unseen):
    rows = _rows(federation.unseen, unseen)
    new = _scores(simulation, state, scope, None, rows)
  return _summary(own, whole, new) | {
    'clients': len(ids),
    'pooled_rows': len(pooled),
    'unseen_clients': len(unseen),
  }


def _summary(own, whole, new) -> dict[str, Any]:
  models, per_client = {}, {}
  for key, sums in own.items():
    if not key.startswith('score/'):
      continue
    name, means = key.removeprefix('score/'), metrics.mean(sums)
    scores = means[np.isfinite(means)]  # of clients with anything to score
    models[name] = {
      'own_mean': float(np.mean(scores)),
      'own_worst_decile': metrics.worst_decile(scores),
      'own_std': float(np.std(scores)),
      'own_loss': metrics.mean_over_clients(own[f'loss/{name}']),
      'pooled': metrics.mean_over_clients(whole[key]),
      'pooled_loss': metrics.mean_over_clients(whole[f'loss/{name}']),
      'unseen': metrics.mean_over_clients(new[key]) if new else None,
    }
    per_client[name] = [float(x) if np.isfinite(x) else None for x in means]
  stats = {
    name: metrics.mean_over_clients(sums)
    for name, sums in own.items()
    if '/' not in name
  }
  return {'models': models, **stats, 'per_client': per_client}


def _some(count: int, most: int, seed: int) -> np.ndarray:
  """At most `most` numbers below `count`, in order, drawn by the seed."""
  if count <= most:
    return np.arange(count)
  return np.sort(cohorts.sample_cohort(seed, 1 << 20, 0, count, most))


def _rows(partition: Partition, ids: np.ndarray) -> np.ndarray:
  """All rows of these clients, int32 [n, V], -1 is padding."""
  return cohorts.evaluation_rows(partition, ids, 0)


def _scores(simulation, state, scope: Scope, ids, rows):
  """Sums [n, 2] on rows [n, V] by name. ids: whose personal state is used;
  None: the one that everybody starts with."""
  stage = simulation.stages[state.stage]
  store = simulation.keeper.store(stage.name, state.roles.personal)
  plan = simulation.plan(state)
  table, translate = simulation.tables.view(
    stage.algorithm, state.roles, rows, plan
  )
  rows, parts = translate(rows), []
  width = min(scope.width, len(rows))
  for start in range(0, len(rows), width):
    places = np.minimum(np.arange(start, start + width), len(rows) - 1)
    if ids is None:
      personal = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (width, *x.shape)), state.roles.personal
      )
    else:
      personal = jax.tree.map(jnp.asarray, store.gather(ids[places]))
    sums = rounds.evaluate_chunk(
      stage.algorithm,
      state.roles.frozen,
      state.roles.shared,
      personal,
      table,
      rows[places],
      plan,
      None,
    )
    parts.append(jax.device_get(sums))
  return {
    name: np.concatenate([part[name] for part in parts])[: len(rows)]
    for name in parts[0]
  }
