"""Which clients are drawn for a round: samplers of cohorts.

All are pure functions of seed, stage and round, so that a resumed run draws
what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Sampling
from fedms_jax.data import cohorts, draws

KINDS = ('fixed', 'poisson', 'cyclic', 'min_separation')
# Of one's own: (seed, stage, round, N, K) -> ids of a cohort.
Draw = Callable[[int, int, int, int, int], np.ndarray]
SPREADS = 6  # standard deviations over the mean, of the usual cap


def sampling(
  kind: str | Draw, clients: int, size: int, cap: int = 0, groups: int = 1
) -> Sampling:
  """A checked `Sampling`.

  Args:
    kind: one of `KINDS`; or what draws K ids itself, a pure function, so that
      a resumed run draws the same.
    clients: N.
    size: K or its mean; of 'fixed' at most N is drawn.
    cap: of a random cohort; 0: `SPREADS` deviations over the mean, rounded up.
    groups: of 'cyclic' and 'min_separation', else 1.

  Raises:
    ValueError: no cohort can be drawn so.
  """
  if not isinstance(kind, str):
    plain = sampling('fixed', clients, size, cap, groups)
    return plain._replace(kind='own', draw=kind)
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
  return _varying(kind, clients, size, cap, groups)


def _varying(
  kind: str, clients: int, size: int, cap: int, groups: int
) -> Sampling:
  """How cohorts of random size are drawn."""
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
  if how.draw is not None:
    return _own(how, seed, stage, round)
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


def _own(how: Sampling, seed: int, stage: int, round: int) -> np.ndarray:
  """What a sampler of one's own draws, checked."""
  assert how.draw is not None
  found = np.asarray(how.draw(seed, stage, round, how.clients, how.size))
  ids = np.unique(found).astype(np.int64)
  whole = found.ndim == 1 and found.dtype.kind in 'iu'
  if not whole or len(ids) != len(found) or len(ids) > how.size:
    raise ValueError(
      f'`sampling` drew {found.tolist()!r:.200} in round {round}; allowed: at '
      f'most {how.size} whole numbers, each once.'
    )
  if len(ids) and not 0 <= ids[0] <= ids[-1] < how.clients:
    raise ValueError(
      f'`sampling` drew the clients {ids[0]} to {ids[-1]} in round {round}; '
      f'allowed: 0 to {how.clients - 1}.'
    )
  return ids


@functools.lru_cache(maxsize=4)
def _dealt(seed: int, clients: int) -> np.ndarray:
  """All clients in the order in which they are dealt to groups."""
  return draws.generator(seed, Stream.GROUPS).permutation(clients)
