"""Rows of local steps that come by chance, each by itself (Poisson)."""

from __future__ import annotations

import math

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Partition
from fedms_jax.data import cohorts, draws

SPREADS = 6  # standard deviations over the mean, of the usual cap


def cap(batch_size: int, wanted: int = 0) -> int:
  """The most rows of a step. wanted: 0: `SPREADS` deviations over the mean.

  Raises:
    ValueError: it is under the mean.
  """
  usual = math.ceil(batch_size + SPREADS * math.sqrt(batch_size))
  if wanted and wanted < batch_size:
    raise ValueError(
      f'`row_cap`={wanted} is under the mean of a batch, `Options.batch_size`='
      f'{batch_size}; allowed: at least that (0: {usual}). Raise it.'
    )
  return wanted or usual


def batches(
  partition: Partition,
  ids: np.ndarray,
  *,
  batch_size: int,
  epochs: int,
  steps: int,
  seed: int,
  stage: int,
  round: int,
  cap: int,
) -> tuple[np.ndarray, np.ndarray]:
  """As `cohorts.batches`, with rows [K, S, cap + 1] of which each one of a
  client's n comes into a step with the chance B / n, by itself.

  More than `cap` of them lose a random part. There are as many steps as in
  shuffled epochs. The last row of every step is the client's first one, which
  `private_gradient` leaves out: without it a step of no rows would be
  none.
  """
  ids = np.asarray(ids, np.int64)
  sizes = partition.offsets[ids + 1] - partition.offsets[ids]
  width = cap + 1
  if not len(ids):
    return np.full((0, 1, width), cohorts.PADDING, np.int32), sizes
  if sizes.min() < 1:
    raise ValueError(
      f'client {ids[sizes.argmin()]} has no training rows. Raise `min_rows`.'
    )
  counts = epochs * -(-sizes // batch_size)
  if steps:
    counts = np.full_like(sizes, steps)
  extent = cohorts.bucket(int(counts.max()))
  out = np.full((len(ids), extent, width), cohorts.PADDING, np.int32)
  for place, client in enumerate(ids.tolist()):
    held = partition.of(client)
    chance = min(1.0, batch_size / len(held))
    rng = draws.generator(seed, Stream.BATCHES, stage, round, client)
    for step in range(int(counts[place])):
      size = min(cap, int(rng.binomial(len(held), chance)))
      found = rng.choice(len(held), size, replace=False)
      out[place, step, :size] = held[found]
      out[place, step, -1] = held[0]
  return out, counts
