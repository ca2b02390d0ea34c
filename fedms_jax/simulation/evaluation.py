"""The one evaluation contract: own test rows, pooled test set, newcomers.

A personal model is evaluated as its client has it; a client that was never
sampled has the personal state that everybody starts with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax import metrics
from fedms_jax.base import Partition, Table
from fedms_jax.data import cohorts
from fedms_jax.simulation import execution

_MOST_CLASSES = 100  # of which each is looked at


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
    {'models': {name: {own_mean, own_worst_decile, own_std, pooled, unseen, and
    of classifiers own_classes, other_classes, new_classes, harmonic}},
    'gate_weight', 'gate_entropy' if there is a gate, 'clients',
    'pooled_rows', 'unseen_clients', 'per_client': {name: [n]}}, of models and
    of what else is measured, and 'gate_weight_by_class': {class: [n]}.
  """
  federation, seed = simulation.federation, simulation.options.seed
  ids = _some(federation.test.num_clients, scope.clients, seed)
  pooled = federation.pooled[
    _some(len(federation.pooled), scope.pooled_rows, seed)
  ]
  unseen = np.arange(federation.unseen.num_clients)
  own = _scores(simulation, state, scope, ids, _rows(federation.test, ids))
  personal = bool(jax.tree.leaves(state.roles.personal))
  groups, rows = _grouped(simulation, state, pooled)
  readers = ids if personal else ids[:1]
  whole = _by_group(simulation, state, scope, readers, rows)
  new = {}
  if len(unseen):
    rows = _rows(federation.unseen, unseen)
    new = _scores(simulation, state, scope, None, rows)
  found = _summary(own, whole, new)
  if groups is not None:
    _add_classes(found, whole, groups, federation, ids)
  return found | {
    'clients': len(ids),
    'pooled_rows': len(pooled),
    'unseen_clients': len(unseen),
  }


def _grouped(simulation, state, pooled):
  """(classes, rows [G, V]) of pooled rows by their class; classes is None,
  and G 1, where there are no classes, or too many to look at each."""
  task = simulation.stages[state.stage].algorithm.task
  labels = simulation.federation.table.columns['labels'][pooled]
  classes = np.unique(labels)
  labelled = not (task.perplexity or task.within_batch)
  if not labelled or not 1 <= len(classes) <= _MOST_CLASSES:
    return None, pooled[None]
  groups = [pooled[labels == c] for c in classes]
  rows = np.full((len(groups), max(map(len, groups))), -1, np.int32)
  for row, group in zip(rows, groups, strict=True):
    row[: len(group)] = group
  return classes, rows


def _by_group(simulation, state, scope, readers, rows):
  """Sums [n, G, 2] of the readers' models on groups of rows [G, V]."""
  count, groups = len(readers), len(rows)
  wide = np.tile(rows, (count, 1))
  ids = np.repeat(readers, groups)
  sums = _scores(simulation, state, scope, ids, wide)
  return {k: v.reshape(count, groups, 2) for k, v in sums.items()}


def _summary(own, whole, new) -> dict[str, Any]:
  models, per_client = {}, {}
  for key, sums in own.items():
    means = metrics.mean(sums)
    name = key.removeprefix('score/')
    if '/' in name:
      continue
    per_client[name] = [float(x) if np.isfinite(x) else None for x in means]
    if name == key:
      continue  # no model, but a measure such as the gate's weight
    scores = means[np.isfinite(means)]  # of clients with anything to score
    models[name] = {
      'own_mean': float(np.mean(scores)),
      'own_worst_decile': metrics.worst_decile(scores),
      'own_std': float(np.std(scores)),
      'own_loss': metrics.mean_over_clients(own[f'loss/{name}']),
      'pooled': metrics.mean_over_clients(whole[key].sum(1)),
      'pooled_loss': metrics.mean_over_clients(whole[f'loss/{name}'].sum(1)),
      'unseen': metrics.mean_over_clients(new[key]) if new else None,
    }
  stats = {
    name: metrics.mean_over_clients(sums)
    for name, sums in own.items()
    if '/' not in name
  }
  return {'models': models, **stats, 'per_client': per_client}


def _add_classes(found, whole, classes, federation, ids) -> None:
  """Adds what pooled rows say of classes: of those that a client trained on,
  that only others did, and that nobody did (base and novel classes).

  `harmonic` is the harmonic mean of the first two.
  """
  names = federation.table.label_names
  own = counts(federation.table, federation.train, ids)[:, classes] > 0
  trained = federation.table.columns['labels'][federation.train.rows]
  known = np.isin(classes, trained)
  kinds = {
    'own_classes': own,
    'other_classes': known & ~own,
    'new_classes': np.broadcast_to(~known, own.shape),
  }
  for name, scores in found['models'].items():
    sums = np.broadcast_to(
      whole[f'score/{name}'], (len(ids), *whole[f'score/{name}'].shape[1:])
    )
    for kind, chosen in kinds.items():
      mean = metrics.mean_over_clients((sums * chosen[..., None]).sum(1))
      scores[kind] = mean if np.isfinite(mean) else None
    pair = scores['own_classes'], scores['other_classes']
    scores['harmonic'] = _harmonic(*pair) if None not in pair else None
  if 'gate_weight' in whole:
    weights = metrics.mean(whole['gate_weight'])
    found['per_client']['gate_weight_by_class'] = {
      names[c]: weights[:, i].tolist() for i, c in enumerate(classes)
    }


def _harmonic(a: float, b: float) -> float:
  return 2 * a * b / (a + b) if a + b else 0.0


def counts(table: Table, partition: Partition, ids) -> np.ndarray:
  """Rows of these clients by class, int64 [n, C]."""
  classes, labels = len(table.label_names), table.columns['labels']
  return np.array(
    [np.bincount(labels[partition.of(k)], minlength=classes) for k in ids]
  )


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
  None: the one that everybody starts with. Each process evaluates its own."""
  stage, place = simulation.stages[state.stage], simulation.place
  store = simulation.keeper.store(stage.name, state.roles.personal)
  plan = simulation.plan(state)
  if ids is None:
    own = place.mine(np.arange(len(rows)), len(rows))
  else:
    own = place.mine(ids, simulation.federation.train.num_clients)
  table, translate = simulation.tables.view(
    stage.algorithm, state.roles, rows[own], plan
  )
  moved, out = translate(rows), {}
  width = min(scope.width, len(rows))
  for chosen, most in _chunks(rows, own, width):
    # Who has none runs once, on padding, for the names.
    filled = np.resize(chosen, width) if len(chosen) else np.zeros(width, int)
    if ids is None or not len(own):
      personal = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (width, *x.shape)), state.roles.personal
      )
    else:
      personal = store.gather(ids[filled])
    sums = execution.score(
      stage.algorithm,
      state.roles,
      personal,
      table,
      moved[filled, :most] if len(own) else np.full_like(moved[:width], -1),
      plan,
      None,
      place,
    )
    for name, values in jax.device_get(sums).items():
      whole = out.setdefault(name, np.zeros((len(rows), 2), np.float32))
      whole[chosen] = values[: len(chosen)]
  return place.peers.summed(out)


def _chunks(rows, own, width: int):
  """Pairs (clients, columns) that cover the rows [n, V] of `own`: clients of
  like size together, of whose rows only so many columns hold any.

  Sizes go down in quarters, so that there are few shapes to compile; a table
  of a few columns is not worth a second one.
  """
  sizes = (rows >= 0).sum(axis=1)
  order = own[np.argsort(-sizes[own], kind='stable')]
  for start in range(0, max(len(own), 1), width):
    chosen, most = order[start : start + width], rows.shape[1]
    while most >= 64 and len(chosen) and sizes[chosen].max() <= most // 4:
      most //= 4
    yield chosen, most
