"""Evaluation: own test rows, pooled test set, unseen clients.

A personal model is evaluated as its client has it; a client that was never
sampled has the initial personal state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax.core import metrics
from fedms_jax.core.metrics import Metric
from fedms_jax.core.types import Federation, Partition, Table
from fedms_jax.data import cohorts
from fedms_jax.simulation import mixed, scores
from fedms_jax.simulation.readers import Readers, by_length, chunks, personal
from fedms_jax.simulation.scores import Collector, Scores

_MOST_CLASSES = 100  # of which each is looked at
MOST_LISTED = 10_000  # clients whose values a summary lists


class Scope(NamedTuple):
  """How much is evaluated: at most this many clients, and metrics of each
  model.

  width: clients evaluated together. readers: clients whose models read the
  pooled set, of those evaluated; each reads all of it. names: of the models;
  None: all. mixed: share of pooled rows in a stream that is scored, too, see
  `mixed.py`; 0: none is.
  """

  clients: int = 200
  width: int = 8
  metrics: tuple[Metric, ...] = ()
  readers: int = 200
  names: tuple[str, ...] | None = None
  mixed: float = 0.0


def limited(federation: Federation, most: int, seed: int) -> Federation:
  """The federation with at most `most` pooled rows, drawn by the seed. Call it
  before a simulation reads its rows: the others are then never read."""
  chosen = some(len(federation.pooled), most, seed)
  return federation._replace(pooled=federation.pooled[chosen])


def evaluate(simulation, state, scope: Scope) -> dict[str, Any]:
  """Scores of every model of the last stage.

  Returns:
    {'models': {name: {own_mean, own_worst_decile, own_std, pooled, unseen, and
    of classifiers own_classes, other_classes, harmonic, base_classes,
    new_classes, base_new_harmonic}}, 'metrics' (see `scores.summary`),
    'gate_weight', 'gate_entropy' if there is a gate, 'clients',
    'pooled_rows', 'unseen_clients', 'client_ids' [n], 'per_client': {name:
    [n]}}, of models, of '<metric>/<model>' and of what else is measured, and
    'gate_weight_by_class': {class: [n]} of those who read the pooled set; with
    `Scope.mixed` what `mixed.add` says.
  """
  federation, seed = simulation.federation, simulation.options.seed
  ids = some(federation.test.num_clients, scope.clients, seed)
  pooled = federation.pooled
  unseen = np.arange(federation.unseen.num_clients)
  own = _scores(simulation, state, scope, ids, rows_of(federation.test, ids))
  groups, rows = grouped(simulation, state, pooled)
  among = readers(state, scope, ids, seed)
  whole = _by_group(simulation, state, scope, among, rows)
  new = None
  if len(unseen):
    rows = rows_of(federation.unseen, unseen)
    new = _scores(simulation, state, scope, None, rows)
  found = _summary(own, whole, new)
  if groups is not None:
    clients = among if personal(state) else ids
    _add_classes(found, whole.sums, groups, federation, clients)
  for (kind, model), values in own.values.items():
    found['per_client'][f'{kind}/{model}'] = _listed(values)
  found['metrics'] = scores.summary(scope.metrics, own, whole, new)
  made = stream(simulation, state, scope.mixed, ids, among)
  if made is not None:
    each = mixed.add(found, made, scope.metrics, own, whole)
    found['per_client'] |= {k: _listed(x) for k, x in each.items()}
  return found | {
    'clients': len(ids),
    'client_ids': _listed(ids),
    'pooled_rows': len(pooled),
    'unseen_clients': len(unseen),
  }


def stream(simulation, state, share: float, ids, among) -> mixed.Stream | None:
  """The mixed stream of clients `ids`, of whom those `among` read pooled rows,
  see `readers`; None: there is none."""
  if not share:
    return None
  data = simulation.federation
  read = np.searchsorted(ids, among) if personal(state) else None
  return mixed.Stream(share, read, data.test.sizes()[ids], len(data.pooled))


def readers(state, scope: Scope, ids: np.ndarray, seed: int) -> np.ndarray:
  """Those of the clients whose models read the pooled set: one stands for all
  where nothing is personal."""
  if not personal(state):
    return ids[:1]
  return ids[some(len(ids), scope.readers, seed)]


def grouped(simulation, state, pooled):
  """(classes, rows [G, V]) of pooled rows by their class; classes is None,
  and G 1, where there are no classes, or too many to look at each."""
  task = simulation.stages[state.stage].algorithm.task
  labels = simulation.federation.table.columns['labels'][pooled]
  classes = np.unique(labels)
  labelled = task.kind in ('classes', 'levels')
  if not labelled or not 1 <= len(classes) <= _MOST_CLASSES:
    return None, pooled[None]
  groups = [pooled[labels == c] for c in classes]
  width = cohorts.looked_at(max(map(len, groups)))
  rows = np.full((len(groups), width), -1, np.int32)
  for row, group in zip(rows, groups, strict=True):
    row[: len(group)] = group
  return classes, rows


def _by_group(simulation, state, scope, ids, groups) -> Scores:
  """What these clients' models score on groups of rows [G, V]."""
  keep = mixed.kept(scope.metrics) if scope.mixed else ()
  found = Collector(len(ids), scope.metrics, len(groups), keep)
  for chosen, parts in pooled_parts(simulation, state, scope, ids, groups):
    found.add(chosen, jax.device_get(parts))
  return found.scores(simulation.place.peers)


def pooled_parts(simulation, state, scope, ids, groups):
  """(positions, sums on the device for each group): clients evaluated together
  read a row once."""
  among = Readers(simulation, state, scope, ids, len(ids))
  width = min(scope.width, len(ids))
  for chosen in chunks(among.own, width):
    personal = among.personal(chosen, width)
    yield chosen, [among.score(personal, rows) for rows in groups]


def _summary(own: Scores, whole: Scores, new: Scores | None) -> dict[str, Any]:
  models, per_client = {}, {}
  for key, sums in own.sums.items():
    means = metrics.mean(sums)
    name = key.removeprefix('score/')
    if '/' in name:
      continue
    per_client[name] = _listed(means)
    if name == key:
      continue  # no model, but a measure such as the gate's weight
    found = means[np.isfinite(means)]  # of clients with anything to score
    pooled, loss = whole.sums[key], whole.sums[f'loss/{name}']
    models[name] = {
      'own_mean': float(np.mean(found)),
      'own_worst_decile': metrics.worst_decile(found),
      'own_std': float(np.std(found)),
      'own_loss': metrics.mean_over_clients(own.sums[f'loss/{name}']),
      'pooled': metrics.mean_over_clients(pooled.sum(1)),
      'pooled_loss': metrics.mean_over_clients(loss.sum(1)),
      'unseen': metrics.mean_over_clients(new.sums[key]) if new else None,
    }
    models[name] |= scores.losses(
      own.sums[f'loss/{name}'], new.sums[f'loss/{name}'] if new else None
    )
  stats = {
    name: metrics.mean_over_clients(sums)
    for name, sums in own.sums.items()
    if '/' not in name
  }
  return {'models': models, **stats, 'per_client': per_client}


def _listed(values: np.ndarray):
  """Values of clients as JSON has them; very many stay an array."""
  if len(values) > MOST_LISTED:
    return values
  return [x if np.isfinite(x) else None for x in values.tolist()]


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
  for name, told in found['models'].items():
    sums = np.broadcast_to(
      whole[f'score/{name}'], (len(ids), *whole[f'score/{name}'].shape[1:])
    )
    for kind, chosen in kinds.items():
      mean = metrics.mean_over_clients((sums * chosen[..., None]).sum(1))
      told[kind] = mean if np.isfinite(mean) else None
    for kind, both in pairs.items():
      pair = [told[k] for k in both]
      told[kind] = None if None in pair else _harmonic(*pair)
  if 'gate_weight' in whole:
    weights = metrics.mean(whole['gate_weight'])
    found['per_client']['gate_weight_by_class'] = {
      names[c]: weights[:, i].tolist() for i, c in enumerate(classes)
    }


def _harmonic(a: float, b: float) -> float:
  return 2 * a * b / (a + b) if a + b else 0.0


def table(simulation, found: dict[str, Any]) -> dict[str, Any]:
  """The columns of a table of the clients of an evaluation: 'client',
  'train_rows', 'test_rows' and what was measured of each."""
  ids, data = np.asarray(found['client_ids']), simulation.federation
  sizes = {'train_rows': data.train, 'test_rows': data.test}
  columns = {'client': ids}
  columns |= {name: part.sizes()[ids] for name, part in sizes.items()}
  each = found['per_client'].items()
  return columns | {k: v for k, v in each if not isinstance(v, dict)}


def counts(table: Table, partition: Partition, ids) -> np.ndarray:
  """Rows of these clients by class, int64 [n, C]."""
  classes, labels = len(table.label_names), table.columns['labels']
  return np.array(
    [np.bincount(labels[partition.of(k)], minlength=classes) for k in ids]
  )


def some(count: int, most: int, seed: int) -> np.ndarray:
  """At most `most` numbers below `count`, in order, drawn by the seed."""
  if count <= most:
    return np.arange(count)
  return np.sort(cohorts.sample_cohort(seed, 1 << 20, 0, count, most))


def rows_of(partition: Partition, ids: np.ndarray) -> np.ndarray:
  """All rows of these clients, int32 [n, V], -1 is padding."""
  return cohorts.evaluation_rows(partition, ids, 0)


def _scores(simulation, state, scope: Scope, ids, rows) -> Scores:
  """What clients score on rows [n, V] of their own. ids: whose personal state
  is used; None: the one that everybody starts with. Each process evaluates its
  own."""
  keep = mixed.kept(scope.metrics) if scope.mixed else ()
  found = Collector(len(rows), scope.metrics, keep=keep)
  for chosen, sums in own_parts(simulation, state, scope, ids, rows):
    found.add(chosen, [jax.device_get(sums)])
  return found.scores(simulation.place.peers)


def own_parts(simulation, state, scope: Scope, ids, rows):
  """(positions, sums on the device), a few clients at a time, the ones with
  most rows first."""
  among = Readers(simulation, state, scope, ids, len(rows))
  width = min(scope.width, len(rows))
  for chosen, most in by_length(among.own, rows, width):
    mine = np.full((width, most), -1, np.int32)
    mine[: len(chosen)] = rows[chosen, :most]
    yield chosen, among.score(among.personal(chosen, width), mine)
