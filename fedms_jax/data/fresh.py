"""Rows that a client gets beside those of its local steps: held out of its
training rows, its validation rows, or public ones."""

from __future__ import annotations

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation, Partition
from fedms_jax.data import cohorts, draws


def rows(
  data: Federation,
  ids: np.ndarray,
  round: int,
  *,
  kind: str,
  share: float,
  most: int,
  public: int,
  seed: int,
  stage: int,
) -> np.ndarray:
  """Rows of each client, int32 [K, F], -1 is padding; F does not depend on the
  ids.

  Args:
    data, ids, round: whose, and when.
    kind: 'validation': the first validation rows; 'holdout' or 'crossfit': the
      first rows of the training rows, the same in each round.
    share: of the training rows, at least one, and never the last one.
    most: rows of a client's own.
    public: rows of the public set beside them, drawn for each round and client.
    seed, stage: of the draw.
  """
  ids = np.asarray(ids, np.int64)
  own = _validation(data, ids, most)
  if kind != 'validation':
    own = held_out(data.train, ids, share, most)
  if not public:
    return own
  more = _public(data.public, ids, round, public, seed, stage)
  return np.concatenate([own, more], axis=1)


def _validation(data: Federation, ids: np.ndarray, most: int) -> np.ndarray:
  longest = int(data.validation.sizes().max(initial=1))
  width = cohorts.looked_at(min(most, longest))
  found = cohorts.evaluation_rows(data.validation, ids, most)
  out = np.full((len(ids), max(width, 1)), cohorts.PADDING, np.int32)
  out[:, : found.shape[1]] = found
  return out


def held_out(
  partition: Partition, ids: np.ndarray, share: float, most: int
) -> np.ndarray:
  """The first rows of each client, a share of all of its rows: int32 [K, F]. A
  client's rows are in random order, so these are a random choice."""
  counts = _counts(partition.sizes(), share, most)
  width = cohorts.bucket(max(int(counts.max(initial=1)), 1))
  place = np.arange(width)[None]
  kept = place < counts[ids][:, None]
  at = np.where(kept, partition.offsets[ids][:, None] + place, 0)
  return np.where(kept, partition.rows[at], cohorts.PADDING).astype(np.int32)


def _counts(sizes: np.ndarray, share: float, most: int) -> np.ndarray:
  counts = np.rint(sizes * share).astype(np.int64)
  return np.minimum(np.clip(counts, 1, most), np.maximum(sizes - 1, 0))


def _public(rows, ids, round, count, seed, stage) -> np.ndarray:
  states = draws.state(seed, Stream.FOREIGN.number, stage, round, ids)
  states = np.repeat(states[: len(ids)], count)
  places = draws.keys(states, np.tile(np.arange(count), len(ids)))
  chosen = (places % np.uint64(len(rows))).astype(np.int64)
  return rows[chosen].reshape(len(ids), count).astype(np.int32)
