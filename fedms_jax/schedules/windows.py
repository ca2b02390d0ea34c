"""FFDAPT's frozen windows (in FDAPT, arXiv 2307.06933).

Each client freezes consecutive blocks, the more the larger its share of the
data. The windows of a round lie one behind the other around the stack, and
those of the next round go on where they end. The abstract says so much; the
widths and that go-on are our reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedms_jax.schedules import Schedule

_START = 'start'


def widths(
  sizes: Sequence[int], blocks: int, share: float, most: int
) -> list[int]:
  """Frozen blocks of each client of a cohort: min(most, round(share L K n_k /
  sum n)), so that `share` is the mean share of the stack that is frozen,
  whatever the number of clients K, but for rounding and `most`.

  Args:
    sizes: training rows n_k of the clients.
    blocks: L.
    share: gamma, of the stack.
    most: epsilon, below L.
  """
  held = np.asarray(sizes, np.float64)
  wanted = share * blocks * len(held) * held / max(held.sum(), 1.0)
  return np.minimum(most, np.rint(wanted)).astype(int).tolist()


def frozen_windows(
  sizes: np.ndarray, blocks: int, share: float, most: int = 0
) -> Schedule:
  """All blocks but a client's window; embeddings and head always train.

  sizes: training rows of all clients [N]. blocks: L. share: the mean share of
  the stack that is frozen; 0: nothing is. most: blocks that a client freezes
  (0: L / 2).

  Raises:
    ValueError: a client would freeze all blocks.
  """
  most = most or blocks // 2
  if most >= blocks:
    raise ValueError(
      f'`most`={most} would freeze all {blocks} blocks of a client; allowed: '
      f'at most {blocks - 1}. Lower `most`.'
    )

  def active(state, t, clients):
    del t
    place, out = state[_START], []
    mine = [int(sizes[int(i)]) for i in clients]
    for width in widths(mine, blocks, share, most):
      frozen = {(place + i) % blocks for i in range(width)}
      out.append(tuple(b not in frozen for b in range(blocks)))
      place += width
    return out

  def planned(state, t, sets):
    del t
    frozen = sum(len(one) - sum(one) for one in sets)
    return {_START: (state[_START] + frozen) % blocks}

  return Schedule(
    {_START: 0},
    lambda state, t, score: state,
    active,
    reads=False,
    planned=planned,
  )
