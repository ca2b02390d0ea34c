"""What an attack has come to, in the summary of a run."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from fedms_jax.data import poison
from fedms_jax.shell import attacks
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.attack import NONE
from fedms_jax.simulation import evaluation


def summary(
  config: Config, world, simulation, state, scope: evaluation.Scope, scores
) -> dict[str, Any] | None:
  """What summary.json says of an attack; None: there is none.

  'success' is the share of rows that get the label which the attacker wants, of
  those that the attack changes: of each model over the 'honest' clients' own
  test rows (with the trigger) and over the 'malicious' ones', the mean over
  clients; over 'pooled' rows, and those of 'unseen' clients. 'score' are the
  scores of honest and malicious clients on clean rows.

  scores: of `evaluation.evaluate` on clean rows.
  """
  a = config.attack
  if not a.on:
    return None
  bad = attacks.malicious(config)
  out: dict[str, Any] = {
    'data': a.data,
    'update': a.update,
    'clients': config.partition.num_clients,
    'malicious': bad.tolist() if len(bad) <= evaluation.MOST_LISTED else [],
    'score': _by_kind(scores, bad),
  }
  if a.data == NONE:
    return out
  found = world.poison
  made = copy.copy(simulation)
  made.federation = poison.tested(simulation.federation, found.copy)
  if not len(made.federation.pooled) or not len(made.federation.test.rows):
    raise ValueError(
      f'--attack.data={a.data} would change no test row, so that its success '
      'cannot be measured. Take other data, or another --attack.target.'
    )
  scope = scope._replace(metrics=(), mixed=0.0)
  told = evaluation.evaluate(made, state, scope)
  success = _by_kind(told, bad)
  for name, model in told['models'].items():
    success[name] |= {k: model[k] for k in ('pooled', 'unseen')}
  return out | {'success': success, 'aimed_rows': told['pooled_rows']}


def _by_kind(scores, bad: np.ndarray) -> dict[str, dict[str, float | None]]:
  """Means over honest and over malicious clients, of each model."""
  liars = np.isin(scores['client_ids'], bad)
  out = {}
  for name in scores['models']:
    values = np.array(scores['per_client'][name], float)
    out[name] = {
      'honest': _mean(values[~liars]),
      'malicious': _mean(values[liars]),
    }
  return out


def _mean(values: np.ndarray) -> float | None:
  """The mean of those that are known."""
  known = values[np.isfinite(values)]
  return float(known.mean()) if len(known) else None
