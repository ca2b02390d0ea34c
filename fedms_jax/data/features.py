"""Columns of `datasets` splits: found by type or name; labels are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedms_jax.core.types import Table
from fedms_jax.data import images, inputs, names

INPUT_NAMES = frozenset(
  'image images img picture pixels pixel_values input inputs x text sentence '
  'content review document question'.split()
)
LABEL_NAMES = frozenset(
  'label labels fine_label target targets class category y character digit '
  'sentiment intent'.split()
)


def read(
  splits: dict[str, Any],
  *,
  input_column: str,
  label_column: str,
  group_column: str,
  image_size: int,
  encode_text: inputs.EncodeText | None,
  target_column: str = '',
  need_labels: bool = True,
  prepare: images.Prepare | None = None,
  progress: bool = False,
) -> tuple[Table, np.ndarray | None]:
  """The table of all rows, split after split, and each row's group.

  Labels are read; the other columns are lazy (`lazy.Column`).

  splits: the training split first, then others with the same columns.
  target_column: texts that belong to the inputs: completions of texts, which
  `encode_text` gets beside them, or captions of images, which become the
  column 'texts'. need_labels: without, data that has no labels has one class.
  prepare: makes each image what a model wants, in place of `image_size`. The
  groups are int32 [M], -1 outside the training split, or None without a
  `group_column`. progress: show a bar when rows are read.
  """
  features = next(iter(splits.values())).features
  others = (group_column, target_column)
  if need_labels or label_column or _label_columns(features, others):
    label_column = find_label(features, label_column, *others)
  input_column = find_input(features, input_column, (label_column, *others))
  used = {'input': input_column, 'label': label_column, 'target': target_column}
  for name, split in splits.items():
    for flag, column in used.items():
      if column:
        kind = f'column of the {name} split'
        names.pick(f'`{flag}_column`', column, split.features, kind)
  groups = _groups(splits, group_column) if group_column else None
  if label_column:
    labels, label_names = _labels(splits, label_column)
  else:
    count = sum(len(split) for split in splits.values())
    labels, label_names = np.zeros(count, np.int32), ('all',)
  columns = inputs.columns(
    splits,
    input_column,
    target_column,
    image_size=image_size,
    encode_text=encode_text,
    prepare=prepare,
    progress=progress,
  )
  return Table(columns | {'labels': labels}, label_names), groups


def find_input(features: Any, column: str, others: tuple[str, ...]) -> str:
  """The column of images or texts: as named, or the only image column, or
  the only one with a usual name."""
  import datasets

  if column:
    return names.pick('`input_column`', column, features, 'column')
  free = {k: v for k, v in features.items() if k not in others}
  found = [k for k, v in free.items() if isinstance(v, datasets.Image)]
  found = found or [k for k in free if k.lower() in INPUT_NAMES]
  return _only(found, features, 'images or texts', 'input_column')


def find_label(features: Any, column: str, *others: str) -> str:
  """The column of labels: as named, or the only one with a usual name, or
  the only one of labels by type; never one of `others`."""
  if column:
    return names.pick('`label_column`', column, features, 'column')
  found = _label_columns(features, others)
  return _only(found, features, 'labels', 'label_column')


def _label_columns(features, others) -> list[str]:
  import datasets

  free = {k: v for k, v in features.items() if k not in others}
  found = [k for k in free if k.lower() in LABEL_NAMES]
  return found or [
    k for k, v in free.items() if isinstance(v, datasets.ClassLabel)
  ]


def _only(found, features, what, flag):
  if len(found) == 1:
    return found[0]
  problem = f'may be any of {", ".join(found)}' if found else 'is not found'
  raise ValueError(
    f'the column of {what} {problem}. Columns: {", ".join(features)}. Name it: '
    f'`{flag}`.'
  )


def _values(split, column):
  return list(split.select_columns(column)[:][column])


def _labels(splits, column) -> tuple[np.ndarray, tuple[str, ...]]:
  """int32 [M] labels of all splits, by one map that covers all of them."""
  import datasets

  values = []
  for name, split in splits.items():
    part, feature = _values(split, column), split.features[column]
    if isinstance(feature, datasets.ClassLabel):
      part = [None if v in (None, -1) else feature.names[v] for v in part]
    missing = [i for i, value in enumerate(part) if value is None]
    if missing:
      raise ValueError(
        f'row {missing[0]} of the {name} split has no {column!r} '
        f'({len(missing)} such rows). Use a split with labels: '
        f'`{name}_split`.'
      )
    if not all(isinstance(value, (int, str)) for value in part):
      raise ValueError(
        f'column {column!r} has values like {part[0]!r}, which are no labels; '
        'allowed: whole numbers, booleans or strings. Name another: '
        '`label_column`.'
      )
    values += part
  feature = next(iter(splits.values())).features[column]
  found = sorted(set(values), key=lambda v: (isinstance(v, str), v))
  if isinstance(feature, datasets.ClassLabel):
    # The declared order, and classes without rows too.
    found = [*feature.names, *(v for v in found if v not in feature.names)]
  code = {value: i for i, value in enumerate(found)}
  labels = np.fromiter((code[value] for value in values), np.int32, len(values))
  return labels, tuple(str(value) for value in found)


def _groups(splits, column):
  (name, split), *others = splits.items()
  names.pick('`group_column`', column, split.features, 'column')
  values = _values(split, column)
  if any(value is None for value in values):
    raise ValueError(
      f'column {column!r} of the {name} split has rows without a value. Name '
      'another: `group_column`.'
    )
  code = {value: i for i, value in enumerate(dict.fromkeys(values))}
  groups = [code[value] for value in values]
  return np.asarray(groups + [-1] * sum(len(s) for _, s in others), np.int32)
