"""Assigns classes to the server, to the clients, or to the test set alone."""

from __future__ import annotations

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.data import draws, names
from fedms_jax.data.sources import Source


def _named(flag: str, text: str, known) -> np.ndarray:
  """Numbers of the classes that are named in a comma-separated list."""
  found = [names.pick(flag, t.strip(), known, 'label') for t in text.split(',')]
  return np.array([known.index(name) for name in found])


def check(source: Source, said: str) -> None:
  """Raises `ValueError` where labels are strata of values or tags, which no
  row is without."""
  outputs = source.table.outputs
  if outputs is not None and outputs.kind != 'levels':
    raise ValueError(
      f'{said}: rows have {outputs.kind} here, and no classes of which some '
      'could be set apart. Leave it out.'
    )


def novel(source: Source, classes: str, fraction: float) -> np.ndarray:
  """Numbers of the classes that nobody trains on: those of a comma-separated
  list, or the last `fraction` of all; raises `ValueError` if none is left."""
  known, labels = source.table.label_names, source.table.columns['labels']
  if not classes and not fraction:
    return np.zeros(0, int)
  check(source, '`novel_classes`, `novel_fraction`')
  if classes and fraction:
    raise ValueError(
      f'`novel_classes`={classes} and `novel_fraction`={fraction} '
      'both say which classes are novel. Leave one of them out.'
    )
  said, count = f'`novel_fraction`={fraction}', len(known)
  found = np.arange(count)[count - max(round(fraction * count), 1) :]
  if classes:
    said = f'`novel_classes`={classes}'
    found = _named('`novel_classes`', classes, known)
  if np.isin(labels[source.train_rows], found).all():
    raise ValueError(
      f'{said} takes every class of {count}, so that no rows are left to train '
      'on. Name fewer, or lower it.'
    )
  pool = source.test_rows if len(source.test_rows) else source.train_rows
  if not np.isin(labels[pool], found).any():
    raise ValueError(
      f'{said}: no row to test has such a class. Name others: there are '
      f'{", ".join(known)}.'
    )
  return found


def tested(
  source: Source, novel: np.ndarray, share: float, seed: int
) -> np.ndarray:
  """Rows of novel classes that are tested where there is no test split: of
  each class the share that clients test of theirs."""
  labels = source.table.columns['labels']
  rng = draws.generator(seed, Stream.NOVEL)
  rows = rng.permutation(source.train_rows)
  found = [rows[:0]]
  for one in novel:
    members = rows[labels[rows] == one]
    found.append(members[: max(round(share * len(members)), 1)])
  return np.concatenate(found)


def divided(
  source: Source, fraction: float, classes: str, novel: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rows of the server, of the clients, and of the pooled test split.

  The server has a random `fraction` of the training rows, or, if given, those
  of `classes`, which the pooled rows lack; nobody has the `novel` ones.
  """
  rows, labels = source.train_rows, source.table.columns['labels']
  rows = rows[~np.isin(labels[rows], novel)]
  if source.public is not None and not classes:
    public = np.isin(rows, source.public)
    return rows[public], rows[~public], source.test_rows
  if not classes:
    if not 0 <= fraction < 1:
      raise ValueError(
        f'`public_fraction`={fraction} is not allowed; allowed: 0 to under 1.'
      )
    rng = draws.generator(seed, Stream.PUBLIC)
    count = int(round(fraction * len(rows)))
    public = rng.permutation(len(rows)) < count
    return rows[public], rows[~public], source.test_rows
  check(source, '`public_classes`')
  known = source.table.label_names
  wanted = _named('`public_classes`', classes, known)
  both = [known[c] for c in np.intersect1d(wanted, novel)]
  if both:
    raise ValueError(
      f'`public_classes`={classes}: {", ".join(both)} would be public, '
      'which the server trains on, and novel, which nobody does. Take it out '
      'here, or out of `novel_classes` or `novel_fraction`.'
    )
  public = np.isin(labels[rows], wanted)
  pool = source.test_rows[~np.isin(labels[source.test_rows], wanted)]
  if public.all():
    raise ValueError(
      f'`public_classes`={classes} takes every class, so that no rows '
      'are left for the clients. Name fewer.'
    )
  return rows[public], rows[~public], pool
