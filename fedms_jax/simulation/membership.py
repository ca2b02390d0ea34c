"""Runs that differ in who trained on which rows, and what their models say of
these rows: what LiRA (arXiv 2112.03570) is made of.

Each run has a random half of each client's training rows, so that a row is in
about half of the runs, whose other halves stand in for the world without it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core.metrics import Metric
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation, Partition
from fedms_jax.data import draws
from fedms_jax.simulation import evaluation
from fedms_jax.simulation.state import Stage

_NAME = 'log_odds'
_WIDTH = 64  # rows looked at together


def half(train: Partition, seed: int, run: int) -> np.ndarray:
  """Which training rows a run has: bool, of each client n // 2, at least 1, in
  an even run, and the others in the next one; so a row is in half of them."""
  kept = np.zeros(len(train.rows), bool)
  for client in range(train.num_clients):
    first, last = train.offsets[client : client + 2].tolist()
    count = max(1, (last - first) // 2)
    rng = draws.generator(seed, Stream.AUDIT, run // 2, client)
    kept[first + rng.permutation(last - first)[:count]] = True
  return ~kept if run % 2 else kept


def halved(stage: Stage, kept: np.ndarray) -> Stage:
  """The stage whose clients have these of their training rows alone.

  Raises:
    ValueError: the stage has a view of its own.
  """
  if stage.view is not None:
    raise ValueError(
      f'the {stage.name} stage trains on other rows than those of the run, of '
      'which a half cannot be left out. Take another method.'
    )

  def view(data: Federation) -> Federation:
    before = np.concatenate([[0], np.cumsum(kept)])
    train = Partition(before[data.train.offsets], data.train.rows[kept])
    return data._replace(train=train)

  return stage._replace(view=view)


def _sums(logits, batch) -> Any:
  """log p_y - log(1 - p_y) and the number of rows: [2]."""
  own = jax.nn.one_hot(batch['labels'], logits.shape[-1], dtype=bool)
  right = jnp.sum(jnp.where(own, logits, 0.0), axis=-1)
  wrong = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
  mask = batch['mask'].astype(jnp.float32)
  odds = jnp.where(batch['mask'], right - wrong, 0.0)
  return jnp.stack([jnp.sum(odds), jnp.sum(mask)])


# One object, so that runs share compiled programs.
LOG_ODDS = Metric(_NAME, _sums, lambda sums: sums[0] / max(sums[1], 1.0))


def log_odds(
  simulation, state, rows: np.ndarray, owners: np.ndarray
) -> dict[str, np.ndarray]:
  """By model its log odds of the true label of rows [M], each as the client
  that owns it has the model; float64 [M]."""
  scope = evaluation.Scope(width=_WIDTH, metrics=(LOG_ODDS,))
  prefix, out = f'metric/{_NAME}/', {}
  parts = evaluation.own_parts(
    simulation, state, scope, owners, rows[:, None].astype(np.int32)
  )
  for chosen, sums in parts:
    for name, values in jax.device_get(sums).items():
      if name.startswith(prefix):
        found = out.setdefault(name.removeprefix(prefix), np.zeros(len(rows)))
        found[chosen] = values[: len(chosen), 0]
  return out
