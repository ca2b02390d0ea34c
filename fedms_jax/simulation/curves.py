"""The scores of the served model on test rows while a run goes on.

`Simulation.aimed` are rows of each client, as an attack changes them, whose
score is the success of the attack; None: there is no such attack.

They change no number of the training: what they derive is not counted, nothing
is drawn, and they are fetched with the metrics of their round.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax.core import metrics
from fedms_jax.simulation import evaluation, mixed
from fedms_jax.simulation.mixed import Stream
from fedms_jax.simulation.scores import Collector, Scores
from fedms_jax.simulation.state import Options


class Begun(NamedTuple):
  """Scores that are still on the device: (positions, sums) of clients on their
  own rows, on pooled rows, of newcomers, and on what an attacker aims at; and
  how many there are of each. stream: what a mixed stream is made of, if one is
  scored."""

  own: list
  pooled: list
  unseen: list
  attack: list
  counts: tuple[int, int, int, int]
  stream: Stream | None = None


def due(options: Options, rounds: int, last: bool) -> bool:
  """Whether the models are looked at after so many rounds of a stage."""
  every = options.curve.every
  return bool(every) and (last or rounds % every == 0)


def begin(simulation, state) -> Begun:
  """Starts to score the served model of a state, on the same clients each
  time."""
  options, federation = simulation.options, simulation.federation
  scope = _scope(options, simulation.stages[state.stage].algorithm.served)
  count = federation.test.num_clients
  ids = evaluation.some(count, scope.clients, options.seed)
  among = evaluation.readers(state, scope, ids, options.seed)
  own = evaluation.rows_of(federation.test, ids)
  unseen = np.arange(federation.unseen.num_clients)
  new = evaluation.rows_of(federation.unseen, unseen)
  pooled = federation.pooled[None]
  aimed = simulation.aimed
  if aimed is not None:
    aimed = evaluation.rows_of(aimed, ids)
  return Begun(
    list(evaluation.own_parts(simulation, state, scope, ids, own)),
    list(evaluation.pooled_parts(simulation, state, scope, among, pooled)),
    list(evaluation.own_parts(simulation, state, scope, None, new))
    if len(unseen)
    else [],
    []
    if aimed is None
    else list(evaluation.own_parts(simulation, state, scope, ids, aimed)),
    (len(ids), len(among), len(unseen), 0 if aimed is None else len(ids)),
    evaluation.stream(simulation, state, options.curve.mixed, ids, among),
  )


def finish(begun: Begun, options: Options, served: str, peers) -> dict:
  """What the record of the round says: 'eval_own', 'eval_pooled',
  'eval_unseen', 'eval_attack', the means over clients of the score, with
  `Curve.mixed` 'eval_mixed', of a stream of both, see `mixed.py`,
  'eval_own_loss', and the same of each metric, as 'eval_own_f1'."""
  scope = _scope(options, served)
  found, held = {}, {}
  parts = {
    'own': [(chosen, [sums]) for chosen, sums in begun.own],
    'pooled': begun.pooled,
    'unseen': [(chosen, [sums]) for chosen, sums in begun.unseen],
    'attack': [(chosen, [sums]) for chosen, sums in begun.attack],
  }
  for (kind, some), count in zip(parts.items(), begun.counts, strict=True):
    if count:
      collector = Collector(count, scope.metrics)
      for chosen, sums in jax.device_get(some):
        collector.add(chosen, sums)
      held[kind] = collector.scores(peers)
      found |= _told(kind, held[kind], served)
  if begun.stream is not None:
    sums = (held[kind].sums[f'score/{served}'] for kind in ('own', 'pooled'))
    each = mixed.means(begun.stream, *sums)
    found['eval_mixed'] = float(each[np.isfinite(each)].mean())
  return found


def _scope(options: Options, served: str) -> evaluation.Scope:
  curve = options.curve
  return evaluation.Scope(
    clients=curve.clients,
    metrics=tuple(m for m in options.metrics if not m.table),
    readers=min(curve.clients, curve.readers),
    names=(served,),
  )


def _told(kind: str, scores: Scores, served: str) -> dict[str, Any]:
  out = {f'eval_{kind}': scores.sums[f'score/{served}']}
  if kind == 'own':
    out['eval_own_loss'] = scores.sums[f'loss/{served}']
  out = {name: metrics.mean_over_clients(sums) for name, sums in out.items()}
  for (metric, _), values in scores.values.items():
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else float('nan')
    out[f'eval_{kind}_{metric}'] = mean
  return out
