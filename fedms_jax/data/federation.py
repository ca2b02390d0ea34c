"""The federation: public rows, clients, and each client's own split."""

from __future__ import annotations

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation, Partition, Table
from fedms_jax.data import archive, classes, draws, lazy, names
from fedms_jax.data import partition as partitions
from fedms_jax.data.sources import Source

SHIFTS = {
  'none': lambda images: images,
  'rotate': lambda images: np.rot90(images, axes=(1, 2)),
  'transpose': lambda images: np.swapaxes(images, 1, 2),
  'flip': lambda images: images[:, :, ::-1],
  'invert': lambda images: 255 - images,
  'dim': lambda images: images // 2 + 64,
}


def build(
  source: Source,
  *,
  num_clients: int,
  unseen_clients: int = 0,
  name: str | partitions.Owner = '',
  alpha: float = 0.3,
  classes_per_client: int = 3,
  sigma: float = 1.0,
  min_rows: int = 10,
  validation: float = 0.15,
  test: float = 0.25,
  public_fraction: float = 0.3,
  public_classes: str = '',
  novel_classes: str = '',
  novel_fraction: float = 0.0,
  public_shift: str = '',
  seed: int = 0,
  save: str = '',
  load: str = '',
) -> Federation:
  """Divides the rows of a source among the server and the clients.

  The server's public rows are a random `public_fraction` of the training
  split, or, if given, all rows of `public_classes` (comma-separated labels),
  and their images get `public_shift` (empty: what the source asks for). Rows
  of `novel_classes`, or of the last `novel_fraction` of the classes, are
  nobody's, but pooled test rows: the base-to-novel split of Zhou et al. (CVPR
  2022, arXiv 2203.05557, section 4.1), which halves the classes. The others
  are dealt by `name` (see `partition.deal`; empty: as the source asks for:
  `classes` for the embedded digits, else `dirichlet`) to `num_clients +
  unseen_clients` clients, a random choice of which is unseen: all their rows
  are test rows. The others split theirs at random: shares `validation` and
  `test`, and the rest to train on, at least 1 row each.

  The pooled test set is the source's test split, less the public classes; if
  there is none, the test rows of all clients, unseen ones included, and the
  share `test` of the rows of each novel class.

  save: write who has which rows to this file. load: read it from this file
  instead of drawing it; then only `public_shift` and the numbers of clients,
  which must be the file's, have a meaning. The result is checked for leaks.
  """
  if load:
    federation = archive.load(load, source.table)
    _check_counts(federation, num_clients, unseen_clients, load)
  else:
    if not name:
      name = source.partition
      _check_said(
        name, alpha=alpha, classes_per_client=classes_per_client, sigma=sigma
      )
    novel = classes.novel(source, novel_classes, novel_fraction)
    public, private, pooled = classes.divided(
      source, public_fraction, public_classes, novel, seed
    )
    everyone = partitions.deal(
      name,
      source.table.columns['labels'],
      private,
      num_clients=num_clients + unseen_clients,
      seed=seed,
      alpha=alpha,
      classes_per_client=classes_per_client,
      sigma=sigma,
      min_rows=min_rows,
      groups=source.groups,
    )
    parts = _divided(everyone, unseen_clients, validation, test, seed)
    if not len(pooled):
      tested = classes.tested(source, novel, test, seed)
      pooled = np.sort(
        np.concatenate([parts['test'].rows, parts['unseen'].rows, tested])
      )
    named = _names(name, source, parts['train'])
    dealt = name if isinstance(name, str) else ''
    whole = [source.table, *parts.values(), pooled, public, named, dealt]
    federation = Federation._make(whole)
  check_disjoint(federation)
  table = _shifted(
    source.table, federation.public, public_shift or source.public_shift
  )
  if save:
    archive.save(save, federation)
  return federation._replace(table=table)


# What says something of one partitioner alone, and what it is unless asked.
_SAID = {
  'alpha': ('dirichlet', 0.3),
  'classes_per_client': ('classes', 3),
  'sigma': ('quantity', 1.0),
}


def _check_said(name: str, **given: float) -> None:
  """Raises `ValueError` for what says nothing of the source's partitioner."""
  for key, value in given.items():
    of, usual = _SAID[key]
    if name != of and value != usual:
      raise ValueError(
        f'`{key}`={value:g} says nothing of {name!r}, by which these rows are '
        f'dealt where nobody says how; allowed: {usual:g}. Choose '
        f'partition.name={of}, or leave it out.'
      )


def _names(name, source: Source, train: Partition) -> tuple[str, ...]:
  """Names of clients that are groups of a source which names these."""
  named = name == 'natural' and source.group_names
  if not named or source.groups is None:
    return ()
  groups = source.groups[train.rows[train.offsets[:-1]]]
  return tuple(source.group_names[group] for group in groups)


def _check_counts(federation, num_clients, unseen_clients, path):
  found = (federation.train.num_clients, federation.unseen.num_clients)
  if found != (num_clients, unseen_clients):
    raise ValueError(
      f'`load`={path} has {found[0]} clients and {found[1]} unseen '
      f'ones, not {num_clients} and {unseen_clients}. Pass '
      f'`num_clients`={found[0]} '
      f'`unseen_clients`={found[1]}.'
    )


def _divided(everyone, unseen_clients, validation, test, seed):
  """Clients into unseen and training ones, the latter's rows into three."""
  sizes = everyone.sizes()
  if sizes.min() < 3:
    raise ValueError(
      f'client {sizes.argmin()} has {sizes.min()} rows; it needs 3, for '
      'training, validation and test. Raise `min_rows` to 3 or more.'
    )
  rng = draws.generator(seed, Stream.UNSEEN)
  unseen = np.zeros(len(sizes), bool)
  unseen[rng.choice(len(sizes), unseen_clients, replace=False)] = True
  trains, tests = _shares(sizes, validation, test)
  # A client's rows are in random order: any span of them is a random choice.
  return {
    'train': _span(everyone, np.zeros_like(sizes), trains, ~unseen),
    'validation': _span(everyone, trains, sizes - tests, ~unseen),
    'test': _span(everyone, sizes - tests, sizes, ~unseen),
    'unseen': _span(everyone, np.zeros_like(sizes), sizes, unseen),
  }


def newcomers(data: Federation, validation: float, test: float) -> Federation:
  """The clients that never train as if they did: their rows are divided as
  those of the others are. Of the pooled rows one is left."""
  everyone = data.unseen
  sizes = everyone.sizes()
  trains, tests = _shares(sizes, validation, test)
  all_of_them = np.ones(len(sizes), bool)
  zero = np.zeros_like(sizes)
  return data._replace(
    train=_span(everyone, zero, trains, all_of_them),
    validation=_span(everyone, trains, sizes - tests, all_of_them),
    test=_span(everyone, sizes - tests, sizes, all_of_them),
    unseen=_span(everyone, zero, zero, ~all_of_them),
    pooled=data.pooled[:1],
  )


def _shares(sizes, validation: float, test: float):
  """(training rows, test rows) of clients of these sizes."""
  tests = np.clip(np.rint(sizes * test), 1, sizes - 2).astype(np.int64)
  trains = sizes - tests
  trains -= np.clip(np.rint(sizes * validation), 1, trains - 1).astype(np.int64)
  return trains, tests


def _span(partition, start, stop, chosen):
  """Places `start` to `stop` of the rows of each of the chosen clients."""
  sizes = partition.sizes()
  place = np.arange(len(partition.rows)) - np.repeat(
    partition.offsets[:-1], sizes
  )
  stop = np.where(chosen, stop, start)
  kept = (place >= np.repeat(start, sizes)) & (place < np.repeat(stop, sizes))
  counts = (stop - start)[chosen]
  return Partition(
    np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    partition.rows[kept],
  )


def _shifted(table: Table, public, shift) -> Table:
  """The table with its public images shifted to another domain; lazy ones
  are when they are read."""
  names.pick('`public_shift`', shift, SHIFTS, 'domain shift')
  if shift == 'none' or not len(public):
    return table
  images = table.columns['inputs']
  chosen = np.zeros(len(table.columns['labels']), bool)
  chosen[public] = True

  def change(rows, arrays):
    _shift(arrays['inputs'], np.flatnonzero(chosen[rows]), shift)
    return arrays

  if isinstance(images, lazy.Column):
    images = lazy.Column(lazy.Changed(images.reader, change), images.name)
  else:
    images = images.copy()
    _shift(images, public, shift)
  return table._replace(columns=table.columns | {'inputs': images})


def _shift(images, places, shift) -> None:
  """Shifts the images at these places."""
  if images.ndim != 4:
    raise ValueError(
      f'`public_shift`={shift} is for images, and these inputs are none. '
      'Use `public_shift`=none.'
    )
  before = images[places]
  shifted = SHIFTS[shift](before)
  if shifted.shape != before.shape:
    raise ValueError(
      f'`public_shift`={shift} needs square images; got '
      f'{images.shape[1]} x {images.shape[2]}. Use `image_size`, or '
      'another shift.'
    )
  images[places] = shifted


def check_disjoint(federation: Federation) -> None:
  """Raises `ValueError` at a leak.

  A row may be once in one of train, validation, test, unseen and public, and
  once in the pooled test set unless it is in train, validation or public.
  """
  size = len(federation.table.columns['labels'])
  parts = {
    'train': federation.train.rows,
    'validation': federation.validation.rows,
    'test': federation.test.rows,
    'unseen': federation.unseen.rows,
    'public': federation.public,
  }
  holder = np.full(size, -1, np.int8)
  for code, (part, rows) in enumerate(parts.items()):
    _check_rows(part, rows, size)
    _check_free(part, rows, holder, list(parts))
    holder[rows] = code
  _check_rows('pooled', federation.pooled, size)
  for part in ('test', 'unseen'):
    holder[parts[part]] = -1
  _check_free('pooled', federation.pooled, holder, list(parts))


def _check_rows(part, rows, size):
  if len(rows) and not 0 <= rows.min() <= rows.max() < size:
    raise ValueError(
      f'{part} has rows {rows.min()} to {rows.max()}; the table has rows 0 to '
      f'{size - 1}. The partition is of other data: make it again.'
    )
  twice = np.flatnonzero(np.bincount(rows, minlength=size) > 1)
  if len(twice):
    raise ValueError(
      f'leak: {part} has row {twice[0]} twice ({len(twice)} such rows). Make '
      'the partition again.'
    )


def _check_free(part, rows, holder, parts):
  taken = rows[holder[rows] >= 0]
  if len(taken):
    raise ValueError(
      f'leak: row {taken[0]} is in {parts[holder[taken[0]]]} and in {part} '
      f'({len(taken)} such rows). Make the partition again.'
    )


def by_client(data: Federation) -> Federation:
  """The same federation with its table sorted by client.

  Then the rows of one client share few blocks of derived columns, and a
  cohort's raw rows are few contiguous pieces. Lazy columns stay lazy.
  """
  order = np.concatenate(
    [
      _interleaved(data.train, data.validation, data.test),
      data.unseen.rows,
      data.public,
    ]
  ).astype(np.int64)
  count = len(data.table.columns['labels'])
  rest = np.setdiff1d(np.arange(count), order, assume_unique=False)
  order = np.concatenate([order, rest])
  place = np.empty(count, np.int32)
  place[order] = np.arange(count, dtype=np.int32)
  columns = lazy.reordered(data.table.columns, order)

  def moved(partition):
    return partition._replace(rows=place[partition.rows])

  return data._replace(
    table=data.table._replace(columns=columns),
    train=moved(data.train),
    validation=moved(data.validation),
    test=moved(data.test),
    unseen=moved(data.unseen),
    pooled=place[data.pooled],
    public=place[data.public],
  )


def _interleaved(*partitions) -> np.ndarray:
  """The rows of several partitions of the same clients, client by client."""
  owner = np.concatenate(
    [np.repeat(np.arange(p.num_clients), p.sizes()) for p in partitions]
  )
  rows = np.concatenate([p.rows for p in partitions])
  return rows[np.argsort(owner, kind='stable')]
