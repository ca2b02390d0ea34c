"""What one round is made of, prepared by a thread while the last one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from fedms_jax.core.types import Federation
from fedms_jax.data import cohorts


class Cohort(NamedTuple):
  """The clients of one round.

  ids: int64 [K]. rows: int32 [K, S, B], -1 is padding. steps: int [K].
  weights: float32 [K], training rows. validation: int32 [K, V], -1 is padding.
  """

  round: int
  ids: np.ndarray
  rows: np.ndarray
  steps: np.ndarray
  weights: np.ndarray
  validation: np.ndarray


def sampler(
  federation: Federation,
  *,
  seed: int,
  stage: int,
  size: int,
  batch_size: int,
  epochs: int,
  steps: int,
  validation_rows: int,
) -> Callable[[int], Cohort]:
  """A pure function from the number of a round to its cohort."""
  train, validation = federation.train, federation.validation
  size = min(size, train.num_clients)
  # One width for all rounds, so that evaluation compiles once per depth.
  width = cohorts.bucket(
    min(validation_rows, int(validation.sizes().max(initial=1)))
  )

  def sample(number: int) -> Cohort:
    ids = cohorts.sample_cohort(seed, stage, number, train.num_clients, size)
    rows, counts = cohorts.batches(
      train,
      ids,
      batch_size=batch_size,
      epochs=epochs,
      steps=steps,
      seed=seed,
      stage=stage,
      round=number,
    )
    held = np.full((size, width), cohorts.PADDING, np.int32)
    found = cohorts.evaluation_rows(validation, ids, validation_rows)
    held[:, : found.shape[1]] = found
    weights = (train.offsets[ids + 1] - train.offsets[ids]).astype(np.float32)
    return Cohort(number, ids, rows, counts, weights, held)

  return sample


def ahead(
  sample: Callable[[int], Cohort], rounds: range, prefetch: bool
) -> Iterator[Cohort]:
  """The cohorts of these rounds in order, one prepared ahead by a thread."""
  if not prefetch:
    yield from map(sample, rounds)
    return
  with ThreadPoolExecutor(1, thread_name_prefix='cohort') as pool:
    future = None
    for number in rounds:
      cohort = (future or pool.submit(sample, number)).result()
      last = number == rounds[-1]
      future = None if last else pool.submit(sample, number + 1)
      yield cohort
