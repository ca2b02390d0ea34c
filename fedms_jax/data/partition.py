"""Partitioners: who gets which rows.

A partitioner names an owner for each row; `deal` groups the rows by owner.
Nothing is drawn again until it fits: a partition too small for `min_rows` is
repaired by moving rows, so every partitioner terminates, or says why it
cannot.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Partition
from fedms_jax.data import draws, names

NAMES = ('iid', 'dirichlet', 'classes', 'quantity', 'natural')


# Of one's own: (labels of the rows [n], N, generator) -> owner of each row.
Owner = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def deal(
  name: str | Owner,
  labels: np.ndarray,
  rows: np.ndarray,
  *,
  num_clients: int,
  seed: int,
  alpha: float = 0.3,
  classes_per_client: int = 3,
  sigma: float = 1.0,
  min_rows: int = 10,
  groups: np.ndarray | None = None,
) -> Partition:
  """Deals `rows` to clients; a client's rows come in random order.

  name: `iid`: equal sizes, random rows. `dirichlet`: the rows of each class
  are split in shares drawn from Dirichlet(alpha) over the clients (Li et al.,
  ICDE 2022, arXiv 2102.02079, section IV; the label skew that Hsu et al.,
  arXiv 1909.06335, draw per client instead, with equal sizes). `classes`:
  each client has rows of `classes_per_client` classes, each class dealt
  equally to those who have it. `quantity`: random rows, sizes lognormal with
  `sigma`. `natural`: a client is a group, a random choice of the groups with
  `min_rows` rows if there are more groups than clients; only then are rows
  left over. Or what names an owner for each row itself, -1 for none.

  labels: int [M], groups: int [M] or None, of all rows of the table. rows:
  int row numbers. Raises `ValueError` if the rows cannot be dealt so.
  """
  if isinstance(name, str):
    names.pick('partition.name', name, NAMES, 'partitioner')
  if num_clients < 1 or min_rows < 1:
    raise ValueError(
      f'{num_clients} clients with at least {min_rows} rows cannot be dealt; '
      'allowed: 1 or more of both.'
    )
  if len(rows) < num_clients * min_rows:
    raise ValueError(
      f'{num_clients} clients with at least {min_rows} rows need '
      f'{num_clients * min_rows} rows; there are {len(rows)}. Lower '
      '`num_clients` (unseen clients count too), '
      '`min_rows` or `public_fraction`.'
    )
  rng = draws.generator(seed, Stream.DEAL)
  rows = rng.permutation(np.asarray(rows))
  if not isinstance(name, str):
    owner = _own(name(labels[rows], num_clients, rng), rows, num_clients)
  elif name == 'iid':
    owner = np.arange(len(rows)) * num_clients // len(rows)
  elif name == 'dirichlet':
    owner = _dirichlet(labels[rows], num_clients, rng, alpha)
    owner = _fill(owner, num_clients, min_rows)
  elif name == 'classes':
    owner = _classes(labels[rows], num_clients, rng, classes_per_client)
    _check_sizes(owner, num_clients, min_rows)
  elif name == 'quantity':
    owner = _quantity(len(rows), num_clients, rng, sigma)
    owner = _fill(owner, num_clients, min_rows)
  else:
    own = None if groups is None else groups[rows]
    owner = _natural(own, num_clients, rng, min_rows)
  return _gathered(owner, rows, num_clients, rng)


def _own(owner, rows, num_clients: int) -> np.ndarray:
  """The owners that a partitioner of one's own names, checked."""
  owner = np.asarray(owner)
  if owner.shape != rows.shape or owner.dtype.kind not in 'iu':
    raise ValueError(
      f'the partitioner gave owners of the shape {owner.shape} and type '
      f'{owner.dtype}; allowed: a whole number for each of {len(rows)} rows.'
    )
  if len(owner) and not -1 <= owner.min() <= owner.max() < num_clients:
    raise ValueError(
      f'the partitioner gave owners from {owner.min()} to {owner.max()}; '
      f'allowed: 0 to {num_clients - 1}, and -1 for nobody.'
    )
  return owner.astype(np.int64)


def _gathered(owner, rows, num_clients, rng) -> Partition:
  """The partition in which row `rows[i]` belongs to `owner[i]` (-1: none)."""
  # Shuffled again, as some partitioners deal a client class after class.
  shuffle = rng.permutation(np.flatnonzero(owner >= 0))
  owner, rows = owner[shuffle], rows[shuffle]
  sizes = np.bincount(owner, minlength=num_clients)
  offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
  return Partition(
    offsets, rows[np.argsort(owner, kind='stable')].astype(np.int32)
  )


def _by_class(labels):
  """Positions of the rows of each class that has any."""
  order = np.argsort(labels, kind='stable')
  starts = np.flatnonzero(np.diff(labels[order])) + 1
  return np.split(order, starts)


def _softmax(x):
  weights = np.exp(x - x.max())
  return weights / weights.sum()


def _dirichlet(labels, num_clients, rng, alpha):
  if not (alpha > 0 and np.isfinite(alpha)):
    raise ValueError(
      f'`alpha`={alpha} is not allowed; allowed: a finite number '
      'above 0 (large: nearly iid, small: one class a client).'
    )
  owner = np.empty(len(labels), np.int64)
  for members in _by_class(labels):
    # Dirichlet from log-gamma draws: Gamma(a) = Gamma(a + 1) U^(1/a). The
    # plain draws all underflow to zero when alpha is small.
    draw = np.log(rng.standard_gamma(alpha + 1, num_clients))
    draw -= rng.standard_exponential(num_clients) / alpha
    cuts = np.rint(np.cumsum(_softmax(draw)) * len(members)).astype(np.int64)
    cuts[-1] = len(members)
    shares = np.diff(cuts, prepend=0)
    owner[members] = np.repeat(np.arange(num_clients), shares)
  return owner


def _quantity(num_rows, num_clients, rng, sigma):
  sizes = _apportion(
    num_rows, _softmax(sigma * rng.standard_normal(num_clients))
  )
  return np.repeat(np.arange(num_clients), sizes)


def _classes(labels, num_clients, rng, classes_per_client):
  members = _by_class(labels)
  num_classes = len(members)
  if not 1 <= classes_per_client <= num_classes:
    raise ValueError(
      f'`classes_per_client`={classes_per_client} is not allowed; '
      f'allowed: 1 to {num_classes}, the classes of the private rows.'
    )
  if num_clients * classes_per_client < num_classes:
    raise ValueError(
      f'{num_clients} clients of {classes_per_client} classes cannot hold '
      f'{num_classes} classes. Raise `classes_per_client` or '
      '`num_clients`, or choose partition.name=dirichlet.'
    )
  # A lap is the shortest run of clients that uses all classes equally often;
  # within it client i takes the next k classes of a random circle, so its
  # classes differ, and over all clients the uses of classes differ by few.
  lap = num_classes // np.gcd(num_classes, classes_per_client)
  clients = np.repeat(np.arange(num_clients), classes_per_client)
  circles = rng.permuted(
    np.tile(np.arange(num_classes), (-(-num_clients // lap), 1)), axis=1
  )
  place = np.arange(num_clients * classes_per_client) % (
    lap * classes_per_client
  )
  taken = circles[clients // lap, place % num_classes]
  holders = np.split(
    clients[np.argsort(taken, kind='stable')],
    np.cumsum(np.bincount(taken, minlength=num_classes))[:-1],
  )
  owner = np.empty(len(labels), np.int64)
  for rows, having in zip(members, holders, strict=True):
    owner[rows] = having[np.arange(len(rows)) * len(having) // len(rows)]
  return owner


def _check_sizes(owner, num_clients, min_rows):
  sizes = np.bincount(owner, minlength=num_clients)
  if sizes.min() < min_rows:
    raise ValueError(
      f'client {sizes.argmin()} would get {sizes.min()} rows, fewer than '
      f'`min_rows`={min_rows}, as its classes have few rows. Raise '
      '`classes_per_client`, or lower `num_clients` or '
      '`min_rows`.'
    )


def _natural(groups, num_clients, rng, min_rows):
  if groups is None:
    raise ValueError(
      "the partition 'natural' needs the group of each row, and this source "
      'has none. Name its column: `group_column`.'
    )
  found, group, sizes = np.unique(
    groups, return_inverse=True, return_counts=True
  )
  enough = np.flatnonzero(sizes >= min_rows)
  if len(enough) < num_clients:
    raise ValueError(
      f'{num_clients} clients (unseen ones included) need as many groups with '
      f'at least {min_rows} rows; {len(enough)} of {len(found)} groups have '
      'them. Lower `num_clients` or `min_rows`.'
    )
  client = np.full(len(found), -1)
  client[rng.permutation(enough)[:num_clients]] = np.arange(num_clients)
  return client[group]


def _apportion(total, weights):
  """Whole numbers that sum to `total`, in proportion to `weights`
  (largest remainders)."""
  exact = total * (weights / weights.sum())
  parts = np.floor(exact).astype(np.int64)
  left = total - parts.sum()
  parts[np.argsort(parts - exact, kind='stable')[:left]] += 1
  return parts


def _fill(owner, num_clients, least):
  """Moves as few rows as possible until each client has `least`.

  A client gives in proportion to what it has over `least`. Those who lack
  rows take them in one run from the gifts, which lie giver by giver, so a
  small client inherits the label skew of a large one.
  """
  sizes = np.bincount(owner, minlength=num_clients)
  lack = np.maximum(least - sizes, 0)
  if not lack.any():
    return owner
  keeps = sizes - _apportion(lack.sum(), np.maximum(sizes - least, 0))
  keeps = np.where(lack, sizes, keeps)
  order = np.argsort(owner, kind='stable')
  starts = np.cumsum(sizes) - sizes
  place = np.arange(len(owner)) - np.repeat(starts, sizes)
  given = order[place >= np.repeat(keeps, sizes)]
  owner = owner.copy()
  owner[given] = np.repeat(np.arange(num_clients), lack)
  return owner


def describe(
  partition: Partition, labels: np.ndarray, num_classes: int
) -> dict[str, float]:
  """Statistics of a partition.

  clients, rows; rows_min, rows_median, rows_max per client; label_entropy:
  mean over clients of the entropy of their labels, in nats; classes: mean of
  exp(entropy), the effective number of classes of a client.
  """
  sizes = partition.sizes()
  if not len(sizes):
    zero = ('rows', 'rows_min', 'rows_median', 'rows_max')
    return dict.fromkeys(('clients', *zero), 0) | {
      'label_entropy': 0.0,
      'classes': 0.0,
    }
  client = np.repeat(np.arange(len(sizes)), sizes)
  # Only the pairs that occur: a dense clients x classes table would not fit.
  pairs, counts = np.unique(
    client * num_classes + labels[partition.rows], return_counts=True
  )
  client = pairs // num_classes
  share = counts / sizes[client]
  entropy = np.bincount(client, -share * np.log(share), minlength=len(sizes))
  return {
    'clients': len(sizes),
    'rows': int(sizes.sum()),
    'rows_min': int(sizes.min()),
    'rows_median': float(np.median(sizes)),
    'rows_max': int(sizes.max()),
    'label_entropy': float(entropy.mean()),
    'classes': float(np.exp(entropy).mean()),
  }


def sentence(statistics: dict[str, float]) -> str:
  """One line that says what `describe` found."""
  return (
    '{clients} clients, {rows} rows ({rows_min} to {rows_max} each, median '
    '{rows_median:g}), label entropy {label_entropy:.2f} nats, '
    '{classes:.1f} effective classes a client'
  ).format(**statistics)
