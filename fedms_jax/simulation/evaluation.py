"""Evaluation: own test rows, pooled test set, unseen clients.

A personal model is evaluated as its client has it; a client that was never
sampled has the initial personal state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import metrics
from fedms_jax.core.scoring import Look
from fedms_jax.core.types import Federation, Partition, Table
from fedms_jax.data import cohorts
from fedms_jax.simulation import execution

_MOST_CLASSES = 100  # of which each is looked at


class Scope(NamedTuple):
  """How much is evaluated: at most this many clients.

  width: clients evaluated together.
  """

  clients: int = 200
  width: int = 8


def limited(federation: Federation, most: int, seed: int) -> Federation:
  """The federation with at most `most` pooled rows, drawn by the seed. Call it
  before a simulation reads its rows: the others are then never read."""
  chosen = _some(len(federation.pooled), most, seed)
  return federation._replace(pooled=federation.pooled[chosen])


def evaluate(simulation, state, scope: Scope) -> dict[str, Any]:
  """Scores of every model of the last stage.

  Returns:
    {'models': {name: {own_mean, own_worst_decile, own_std, pooled, unseen, and
    of classifiers own_classes, other_classes, harmonic, base_classes,
    new_classes, base_new_harmonic}},
    'gate_weight', 'gate_entropy' if there is a gate, 'clients',
    'pooled_rows', 'unseen_clients', 'per_client': {name: [n]}}, of models and
    of what else is measured, and 'gate_weight_by_class': {class: [n]}.
  """
  federation, seed = simulation.federation, simulation.options.seed
  ids = _some(federation.test.num_clients, scope.clients, seed)
  pooled = federation.pooled
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


def _by_group(simulation, state, scope, ids, groups):
  """Sums [n, G, 2] of these clients' models on groups of rows [G, V]: clients
  evaluated together read a row once."""
  readers, out = _Readers(simulation, state, ids, len(ids)), {}
  width = min(scope.width, len(ids))
  for number, rows in enumerate(groups):
    for chosen in _chunks(readers.own, width):
      for name, values in readers.score(chosen, width, rows).items():
        shape = len(ids), len(groups), 2
        whole = out.setdefault(name, np.zeros(shape, np.float32))
        whole[chosen, number] = values
  return simulation.place.peers.summed(out)


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
  that only others did, that anybody did, and that nobody did.

  `harmonic` is the harmonic mean of the first two, `base_new_harmonic` of the
  last two, the base and novel classes of Zhou et al. (arXiv 2203.05557), None
  where no class is novel; but here all classes compete for a row, not those
  of its kind alone.
  """
  names = federation.table.label_names
  own = counts(federation.table, federation.train, ids)[:, classes] > 0
  trained = federation.table.columns['labels'][federation.train.rows]
  known = np.isin(classes, trained)
  kinds = {
    'own_classes': own,
    'other_classes': known & ~own,
    'base_classes': np.broadcast_to(known & ~known.all(), own.shape),
    'new_classes': np.broadcast_to(~known, own.shape),
  }
  pairs = {
    'harmonic': ('own_classes', 'other_classes'),
    'base_new_harmonic': ('base_classes', 'new_classes'),
  }
  for name, scores in found['models'].items():
    sums = np.broadcast_to(
      whole[f'score/{name}'], (len(ids), *whole[f'score/{name}'].shape[1:])
    )
    for kind, chosen in kinds.items():
      mean = metrics.mean_over_clients((sums * chosen[..., None]).sum(1))
      scores[kind] = mean if np.isfinite(mean) else None
    for kind, both in pairs.items():
      pair = [scores[k] for k in both]
      scores[kind] = None if None in pair else _harmonic(*pair)
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
  readers, out = _Readers(simulation, state, ids, len(rows)), {}
  width = min(scope.width, len(rows))
  sizes = (rows >= 0).sum(axis=1)
  order = readers.own[np.argsort(-sizes[readers.own], kind='stable')]
  for chosen in _chunks(order, width):
    most = _columns(rows.shape[1], sizes[chosen])
    mine = np.full((width, most), -1, np.int32)
    mine[: len(chosen)] = rows[chosen, :most]
    for name, values in readers.score(chosen, width, mine).items():
      whole = out.setdefault(name, np.zeros((len(rows), 2), np.float32))
      whole[chosen] = values
  return simulation.place.peers.summed(out)


class _Readers:
  """Clients with their models; this process evaluates its `own`.

  ids: as in `_scores`; count: how many they are.
  """

  def __init__(self, simulation, state, ids, count: int):
    stage, place = simulation.stages[state.stage], simulation.place
    of = simulation.federation.train.num_clients
    self.own = (
      place.mine(np.arange(count), count)
      if ids is None
      else place.mine(ids, of)
    )
    self._simulation, self._state, self._ids = simulation, state, ids
    self._algorithm = stage.algorithm
    self._plan = simulation.plan(state)
    self._store = simulation.store(state)

  def score(self, chosen, width: int, rows) -> dict[str, np.ndarray]:
    """Sums [k, 2] of the `chosen` readers [k] on rows [width, V], or on rows
    [V] that all of them read."""
    simulation, roles = self._simulation, self._state.roles
    table, translate = simulation.tables.view(
      self._algorithm, roles, rows, self._plan, usual=False
    )
    sums = execution.score(
      Look(self._algorithm, self._plan),
      roles,
      self._personal(chosen, width),
      table,
      translate(rows),
      simulation.place,
    )
    return {k: v[: len(chosen)] for k, v in jax.device_get(sums).items()}

  def _personal(self, chosen, width: int):
    if self._ids is None or not len(chosen):
      return jax.tree.map(
        lambda x: jnp.broadcast_to(x, (width, *x.shape)),
        self._state.roles.personal,
      )
    return self._store.gather(self._ids[np.resize(chosen, width)])


def _chunks(places, width: int):
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
