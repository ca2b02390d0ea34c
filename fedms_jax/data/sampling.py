"""Which clients are drawn for a round: samplers of cohorts.

All are pure functions of seed, stage and round, so that a resumed run draws
what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Sampling
from fedms_jax.data import cohorts, draws

KINDS = ('fixed', 'poisson', 'cyclic', 'min_separation')
SPREADS = 6  # standard deviations over the mean, of the usual cap


def sampling(
  kind: str, clients: int, size: int, cap: int = 0, groups: int = 1
) -> Sampling:
  """A checked `Sampling`.

  Args:
    kind: one of `KINDS`.
    clients: N.
    size: K or its mean; of 'fixed' at most N is drawn.
    cap: of a random cohort; 0: `SPREADS` deviations over the mean, rounded up.
    groups: of 'cyclic' and 'min_separation', else 1.

  Raises:
    ValueError: no cohort can be drawn so.
  """
  if kind not in KINDS:
    raise ValueError(
      f'`sampling`={kind!r} is no sampler; allowed: {", ".join(KINDS)}.'
    )
  if kind == 'fixed':
    size = min(size, clients)
  if groups > 1 and kind in ('fixed', 'poisson'):
    raise ValueError(
      f'`groups`={groups} are for cohorts drawn of groups in turn; got '
      f'`sampling`={kind}. Leave it out, or set `sampling`=cyclic.'
    )
  members = clients // groups
  if not 1 <= size <= members:
    raise ValueError(
      f'`size`={size} is not allowed; allowed: 1 to {members}, the clients of '
      f'each of {groups} groups. Lower `size` or `groups`.'
    )
  if kind not in ('poisson', 'cyclic'):
    if cap:
      raise ValueError(
        f'`cap`={cap} is for cohorts of random size; got `sampling`={kind}. '
        'Leave it out.'
      )
    return Sampling(kind, clients, size, size, groups)
  chance = size * groups / clients
  spread = math.sqrt(size * max(0.0, 1 - chance))
  most = -(-clients // groups)
  usual = min(most, math.ceil(size + SPREADS * spread - 1e-9))
  if cap and not size <= cap:
    raise ValueError(
      f'`cap`={cap} is under the mean of the cohorts, {size}; allowed: at '
      f'least that (0: {usual}). Raise it.'
    )
  return Sampling(kind, clients, size, min(cap or usual, most), groups)


def sample(how: Sampling, seed: int, stage: int, round: int) -> np.ndarray:
  """Ids of the clients of a round, ascending, int64 [K]; of random cohorts K
  may be 0.

  A Poisson cohort is drawn by its size, which is binomial, and then as many
  clients of all: the same law, in time and memory that grow with K alone. To
  keep `cap` of a larger one is to draw that many.
  """
  if how.kind == 'fixed':
    return cohorts.sample_cohort(seed, stage, round, how.clients, how.size)
  members, count = None, how.clients
  if how.groups > 1:
    members = _dealt(seed, how.clients)[round % how.groups :: how.groups]
    count = len(members)
  rng = draws.generator(seed, Stream.COHORT, stage, round)
  size = how.size
  if how.random:
    size = min(how.cap, int(rng.binomial(count, how.chance)))
  found = rng.choice(count, size, replace=False, shuffle=False)
  found = found if members is None else members[found]
  return np.sort(found.astype(np.int64))


@functools.lru_cache(maxsize=4)
def _dealt(seed: int, clients: int) -> np.ndarray:
  """All clients in the order in which they are dealt to groups."""
  return draws.generator(seed, Stream.GROUPS).permutation(clients)
