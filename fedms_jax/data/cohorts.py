"""Which clients take part in a round, and which rows each step gets.

Everything here is a pure function of its arguments, so a resumed run needs no
sampler state. What a client gets does not depend on who else is in the cohort,
nor on the order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Partition
from fedms_jax.data import draws

PADDING = -1


def sample_cohort(
  seed: int, stage: int, round: int, num_clients: int, size: int
) -> np.ndarray:
  """Ids of `size` different clients of `num_clients`, ascending, int64 [K].

  Time and memory grow with `size`, not with the population (`choice` keeps
  a set of the drawn ids; it makes no permutation unless `size` is within a
  factor of 50 of the population).
  """
  if not 1 <= size <= num_clients:
    raise ValueError(
      f'`size`={size} is not allowed; allowed: 1 to {num_clients}, '
      'the clients that train.'
    )
  rng = draws.generator(seed, Stream.COHORT, stage, round)
  return np.sort(rng.choice(num_clients, size, replace=False, shuffle=False))


def lost(
  seed: int, stage: int, round: int, ids: np.ndarray, share: float
) -> np.ndarray:
  """Which of these clients are lost in a round, bool [K]: each with the chance
  `share`, whoever else is there."""
  states = draws.state(seed, Stream.LOST.number, stage, round, ids)
  numbers = draws.keys(states, np.zeros(len(states), np.uint64))
  return ((numbers >> np.uint64(11)) * 2.0**-53 < share)[: len(ids)]


def bucket(n: int) -> int:
  """The least allowed extent that is at least `n`.

  Allowed are 1 to 16, and then 8 extents per factor of 2 (18, 20, ..., 32, 36,
  ...): few shapes mean few compilations, and padding stays under 12.5 %.
  """
  granule = 1 << max((int(n) - 1).bit_length() - 4, 0)
  return -(-int(n) // granule) * granule


def looked_at(n: int) -> int:
  """The least extent of rows that are evaluated that is at least `n`.

  Few rows cost less than a program of their own, which a run of another seed
  or partition would need: up to 128 there are at most four extents per factor
  of 2 (16, 24, 32, 40, ...), so that padding stays under a quarter from 32 on,
  and a `bucket` above.
  """
  if n > 128:
    return bucket(n)
  granule = max(1 << max((int(n) - 1).bit_length() - 3, 0), 8)
  return max(-(-int(n) // granule) * granule, 16)


def chunks(
  steps: np.ndarray,
  width: int,
  extent: Callable[[int], int] = bucket,
  least: int = 1,
) -> list[tuple[np.ndarray, int]]:
  """Clients that are computed together: places in `steps`, and lanes for them.

  A chunk takes as many steps as its longest client, in every lane, so few long
  clients make many lanes wait. Clients of like length go together, and long
  ones in narrower chunks: of the widths `width`, half of it, and so on, those
  that take the least time in all, if each step takes a thirty-second of a full
  one's time however narrow it is.

  Args:
    steps: of each client, int [K].
    width: most clients of a chunk.
    extent: how many steps a chunk of that many at most is given.
    least: number of lanes of the narrowest chunk.
  """
  widths = [width]
  while widths[-1] > least:
    widths.append(max(least, -(-widths[-1] // 2)))
  order = np.argsort(-np.asarray(steps), kind='stable')
  best = [0.0] + [np.inf] * len(order)  # of the first i clients
  last = [(0, 0)] * len(best)  # where their last chunk begins; its lanes
  for i, longest in enumerate(np.asarray(steps)[order].tolist()):
    for lanes in widths:
      j = min(i + lanes, len(order))
      cost = best[i] + extent(longest) * (lanes + width / 32)
      if cost < best[j]:
        best[j], last[j] = cost, (i, lanes)
  found, j = [], len(order)
  while j:
    i, lanes = last[j]
    found.append((order[i:j], lanes))
    j = i
  return found[::-1]


def best_width(steps: np.ndarray, width: int, least: int = 1) -> int:
  """The one width for all chunks of a cohort: of those that `chunks` tries, the
  one by which all of them together take the least time, as it is counted there.

  steps, width, least: as in `chunks`.
  """
  longest, found = np.sort(steps)[::-1], {}
  while True:
    rows = longest[::width].sum()
    found[width] = rows * (width + max(found, default=width) / 32)
    if width <= least:
      return min(found, key=found.__getitem__)
    width = max(least, -(-width // 2))


def lengths(sizes: np.ndarray, batch_size: int, epochs: int, steps: int):
  """Local steps of clients of so many rows, int64 [K], see `batches`."""
  if steps:
    return np.full_like(sizes, steps)
  return epochs * -(-sizes // batch_size)


def examples(sizes: np.ndarray, steps: np.ndarray, batch_size: int):
  """Rows that so many steps [K] of `batches` have, with those that come again,
  int64 [K]. sizes: rows of each client."""
  per_epoch = np.maximum(-(-sizes // batch_size), 1)
  passes, rest = np.divmod(steps, per_epoch)
  return passes * sizes + np.minimum(rest * batch_size, sizes)


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
) -> tuple[np.ndarray, np.ndarray]:
  """The rows of each local step of a cohort: int32 [K, S, B], and how many
  steps each client has: int64 [K].

  Each epoch is a new shuffle of a client's rows, cut into batches; its last
  batch may be partial. `steps` > 0 asks for that many steps of as many epochs
  as it takes, 0 for `epochs` whole epochs. -1 is padding: after the rows of a
  partial batch, and in whole steps after a client's last. S is a `bucket`.
  Raises `ValueError` if a client has no rows.
  """
  ids = np.asarray(ids, np.int64)
  sizes = _sizes(partition, ids)
  if not len(ids):
    return np.full((0, 1, batch_size), PADDING, np.int32), sizes
  if sizes.min() < 1:
    raise ValueError(
      f'client {ids[sizes.argmin()]} has no training rows. Raise `min_rows`.'
    )
  per_epoch = -(-sizes // batch_size)
  counts = lengths(sizes, batch_size, epochs, steps)
  passes = -(-counts // per_epoch)
  # One segment per client and epoch; one entry per row of a segment.
  client, epoch = _ragged(passes)
  segment, place = _ragged(sizes[client])
  states = draws.state(
    seed, Stream.BATCHES.number, stage, round, ids[client], epoch
  )
  order = np.lexsort((draws.keys(states[segment], place), segment))
  client, epoch = client[segment], epoch[segment]
  step = epoch * per_epoch[client] + place // batch_size
  shuffled = partition.rows[partition.offsets[ids[client]] + place[order]]
  kept = step < counts[client]
  out = np.full((len(ids), bucket(counts.max()), batch_size), PADDING, np.int32)
  out[client[kept], step[kept], place[kept] % batch_size] = shuffled[kept]
  return out, counts


def evaluation_rows(
  partition: Partition, ids: np.ndarray, limit: int
) -> np.ndarray:
  """The first rows of each client, `limit` at most (0: all): int32 [K, V].

  A client's rows are in random order, so these are a random choice, and the
  same one each time. -1 is padding; V is as in `looked_at`.
  """
  ids = np.asarray(ids, np.int64)
  sizes = _sizes(partition, ids)
  sizes = np.minimum(sizes, limit) if limit else sizes
  client, place = _ragged(sizes)
  width = looked_at(max(int(sizes.max(initial=0)), 1))
  out = np.full((len(ids), width), PADDING, np.int32)
  out[client, place] = partition.rows[partition.offsets[ids[client]] + place]
  return out


def _sizes(partition, ids):
  return partition.offsets[ids + 1] - partition.offsets[ids]


def _ragged(sizes):
  """Of each entry of lists of these sizes: which list, which place in it."""
  which = np.repeat(np.arange(len(sizes)), sizes)
  place = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  return which, place
