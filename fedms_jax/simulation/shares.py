"""Class shares: a correction of logits that any method may have.

A client whose rows are mostly of few classes meets these again. What its
model says of an input is corrected by what the client knows without any:
weight * log(share of the class among its training rows). It is no part of any
method, is applied when models are evaluated, and changes nothing of training.
The rows that it adds to a table, those of the pre-trained model among them, say
how much of a score is the shares' alone.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core.contract import Algorithm, Prediction
from fedms_jax.core.types import Batch, Federation, Plan, Roles, Tree
from fedms_jax.simulation import evaluation
from fedms_jax.simulation.state import StageState

SUFFIX = '_shares'  # of the names of corrected models
# Of which the weight is chosen; our choice, as are the half rows below.
WEIGHTS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
_HALF = 0.5  # rows that each class has beforehand, or its log would be -inf


# Of all models, or by model.
Weights = float | tuple[tuple[str, float], ...] | None


class Shares(NamedTuple):
  """weight: of the correction; None: of `WEIGHTS` the one of the least loss on
  validation rows, for each model apart."""

  weight: float | None = None


def log_shares(data: Federation, ids) -> np.ndarray:
  """log((n_c + 1/2) / (n + C/2)) of n training rows, float32 [K, C]."""
  rows = evaluation.counts(data.table, data.train, ids) + _HALF
  return np.log(rows / rows.sum(1, keepdims=True)).astype(np.float32)


def evaluate(
  simulation, state: StageState, scope: evaluation.Scope, how: Shares
) -> dict[str, Any]:
  """As `evaluation.evaluate`, with a corrected model beside each, under its
  name and `SUFFIX`, and 'share_weights' by model. A newcomer without training
  rows has no shares: its models stay as they are."""
  weights: Weights = how.weight
  if weights is None:
    weights = _learned(simulation, state, scope)
  made = _with(simulation, state, ((SUFFIX, weights),))
  found = evaluation.evaluate(*made, scope)
  names = [x for x in found['models'] if not x.endswith(SUFFIX)]
  by_name = dict(weights) if isinstance(weights, tuple) else None
  used = {x: how.weight if by_name is None else by_name[x] for x in names}
  return found | {'share_weights': used}


def _learned(simulation, state: StageState, scope) -> Weights:
  """The weight of each model, by its loss on clients' validation rows."""
  data = simulation.federation
  simulation = copy.copy(simulation)
  nobody = data.unseen._replace(offsets=np.zeros(1, np.int64))
  simulation.federation = data._replace(
    test=data.validation, pooled=data.pooled[:1], unseen=nobody
  )
  tries = tuple((f'@{w:g}', w) for w in WEIGHTS)
  models = evaluation.evaluate(*_with(simulation, state, tries), scope)[
    'models'
  ]

  def best(name: str) -> float:
    return min(WEIGHTS, key=lambda w: models[f'{name}@{w:g}']['own_loss'])

  names = sorted(x for x in models if '@' not in x)
  return tuple((name, best(name)) for name in names)


def _with(simulation, state: StageState, weights):
  """(the simulation, the state) whose clients have their shares."""
  made = copy.copy(simulation)
  stage = simulation.stages[state.stage]
  made.stages = [*simulation.stages]
  made.stages[state.stage] = stage._replace(
    algorithm=_corrected(stage.algorithm, weights)
  )
  none = np.zeros(len(simulation.federation.table.label_names), np.float32)
  mine = {'own': state.roles.personal, 'log_shares': none}
  roles = state.roles._replace(personal=jax.tree.map(jnp.asarray, mine))
  made.store = lambda _: _Store(simulation, simulation.store(state))
  return made, state._replace(roles=roles)


class _Store:
  """The clients' states, with their shares."""

  def __init__(self, simulation, own: Any):
    self._data, self._own = simulation.federation, own

  def gather(self, ids: np.ndarray) -> Tree:
    """The states of K clients [K, ...]."""
    found = jnp.asarray(log_shares(self._data, ids))
    return {'own': self._own.gather(ids), 'log_shares': found}


@functools.lru_cache(maxsize=32)
def _corrected(algorithm: Algorithm, weights) -> Algorithm:
  """The algorithm that also predicts corrected logits.

  weights: (suffix, weight of all models or by model) of each correction.
  """

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    mine = roles.personal
    found = algorithm.predict(roles._replace(personal=mine['own']), batch, plan)
    more = {}
    for suffix, by in weights:
      for name, logits in found.logits.items():
        weight = dict(by)[name] if isinstance(by, tuple) else by
        more[f'{name}{suffix}'] = logits + weight * mine['log_shares'][None]
    return Prediction(found.logits | more, found.stats)

  return algorithm._replace(predict=predict)
