"""What summary.json says of a run with a clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedms_jax.shell import timing
from fedms_jax.shell.config import Config
from fedms_jax.systems import participation
from fedms_jax.systems.arrivals import Tasks

_COUNTED = ('offline', 'late', 'cancelled', 'failed', 'partial', 'stale')


def summary(
  config: Config,
  clients: int,
  arrivals: Any,
  records: Sequence[dict[str, Any]],
  result: dict[str, Any],
) -> dict[str, Any] | None:
  """How time passed, and who took part; None: there was no clock.

  clients: N. arrivals: their last state. records: of all rounds. result: the
  summary so far, of which this takes costs and scores of clients.
  """
  if not timing.live(config):
    return None
  count = np.zeros(clients)
  for key, value in arrivals['count'].items():
    count[int(key)] = value
  total = result['total']
  out = {
    'policy': config.time.policy,
    'selection': config.select.name,
    'virtual_time': arrivals['now'],
    'wasted_flops': _share(total['wasted_flops'], total['client_flops']),
    'wasted_bytes': _share(
      total['wasted_bytes'], total['bytes_up'] + total['bytes_down']
    ),
    'participation_gini': participation.gini(count),
    'top_share': participation.top_share(count),
    'dropped': {
      name: int(sum(r.get(name, 0) for r in records)) for name in _COUNTED
    },
  }
  ages = [r['staleness_mean'] for r in records if 'staleness_mean' in r]
  if ages:
    most = max(r.get('staleness_max', 0) for r in records)
    out |= {'staleness_mean': float(np.mean(ages)), 'staleness_max': most}
  if config.time.on:
    out |= _by_speed(config, clients, result)
  return out


def _share(part: float, whole: float) -> float:
  return part / whole if whole else 0.0


def _by_speed(config: Config, clients: int, result) -> dict[str, Any]:
  """Scores of the fastest and slowest tenth of the clients that are scored, by
  the time that each takes for the mean task of the run."""
  total, ids = result['total'], np.array(result['client_ids'], np.int64)
  served = result['served']
  scores = result['per_client'].get(served)
  if not len(ids) or not scores:
    return {}
  rounds = max(total['client_rounds'], 1)
  ids = ids[: len(scores)]
  down, flops, up = (
    np.full(len(ids), total[name] / rounds)
    for name in ('bytes_down', 'client_flops', 'bytes_up')
  )
  one = Tasks(down, flops, up, np.ones(len(ids)))
  which = timing.devices(config, clients)
  seconds = which.phases(ids, one).sum(axis=1)
  found = participation.deciles(seconds, scores)
  return {
    'fastest_tenth': found['fast'],
    'slowest_tenth': found['slow'],
    'task_seconds_range': [float(seconds.min()), float(seconds.max())],
  }
