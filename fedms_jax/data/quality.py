"""What a division of rows cannot show, or shows too well; said before a run.

All of it looks at whole columns, so lazy ones are left alone: of several
processes each reads a part, and none could tell.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from fedms_jax.core.types import Federation
from fedms_jax.data import lazy
from fedms_jax.data.names import DataWarning

ANSWERS = ('labels', 'values', 'tags')  # columns that no model reads


def check(data: Federation, learned: str) -> None:
  """Refuses what has nothing to learn; warns of test rows that are trained on.

  learned: 'next' or 'masked' tokens, else whole rows.
  """
  columns = data.table.columns
  if any(isinstance(column, lazy.Column) for column in columns.values()):
    return
  for rows, what in ((data.train.rows, 'training'), (data.public, 'public')):
    if len(rows) and not _weights(columns, rows, learned).any():
      raise ValueError(
        f'none of {len(rows)} {what} rows has a token to predict, so that '
        'there is nothing to learn. Use longer texts, another `input_column` '
        'or `target_column`, or raise `max_tokens`.'
      )
  if len(data.pooled) and not _weights(columns, data.pooled, learned).any():
    warnings.warn(
      f'none of {len(data.pooled)} pooled test rows has a token to predict: '
      'the pooled score will be missing.',
      DataWarning,
      stacklevel=2,
    )
  found, tested = repeated(data)
  if found:
    warnings.warn(
      f'{found} of {tested} test rows ({found / tested:.2%}) have the input of '
      'a row that somebody trains on; their scores measure memory.',
      DataWarning,
      stacklevel=2,
    )


def repeated(data: Federation) -> tuple[int, int]:
  """How many test rows have the input of a training row of a client or of the
  server, and how many there are."""
  tests = (data.test.rows, data.unseen.rows, data.pooled)
  tested = np.unique(np.concatenate(tests))
  trained = np.concatenate([data.train.rows, data.public])
  known = set(_prints(data.table.columns, trained))
  return sum(p in known for p in _prints(data.table.columns, tested)), len(
    tested
  )


def _prints(columns, rows):
  """A number for each row that tells its inputs from others."""
  read = [
    np.ascontiguousarray(v) for k, v in columns.items() if k not in ANSWERS
  ]
  for row in rows:
    yield hash(tuple(column[row].tobytes() for column in read))


def _weights(columns, rows, learned: str) -> np.ndarray:
  """The tokens that count in each row [n]; of whole rows 1, see `tasks`."""
  if learned == 'next':
    targets = columns.get('targets', columns['inputs'])[rows, 1:]
  elif learned == 'masked':
    targets = columns['targets'][rows]
  else:
    return np.ones(len(rows), int)
  return (targets >= 0).sum(axis=1)


def check_prompts(
  names: Sequence[str], prompts: Sequence[Sequence[str]]
) -> None:
  """Warns where prompts do not say what a class is.

  prompts: of each class, by template.
  """
  first: dict[tuple[str, ...], str] = {}
  for name, found in zip(names, map(tuple, prompts), strict=True):
    if found in first:
      warnings.warn(
        f'the classes {first[found]!r} and {name!r} have the same prompt, '
        f'{found[0]!r}, and cannot be told apart.',
        DataWarning,
        stacklevel=2,
      )
      break
    first[found] = name
  if names and all(name.lstrip('-').isdigit() for name in names):
    warnings.warn(
      f'the classes are numbers, and so are their prompts, such as '
      f'{first and next(iter(first))[0]!r}. Data with names for its classes '
      'does better: a ClassLabel, or a column of names.',
      DataWarning,
      stacklevel=2,
    )
