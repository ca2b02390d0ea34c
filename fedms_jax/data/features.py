"""Columns of `datasets` splits: found by type or name; labels are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedms_jax.core.types import Table
from fedms_jax.data import answers, files, images, inputs, labels, names
from fedms_jax.data.answers import Answers
from fedms_jax.data.tasks import DOMAIN

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
  domain_column: str = '',
  need_labels: bool = True,
  answer: str = 'classes',
  prepare: images.Prepare | None = None,
  progress: bool = False,
  places: files.Places = (),
) -> tuple[Table, np.ndarray | None]:
  """The table of all rows, split after split, and each row's group.

  Labels are read; the other columns are lazy (`lazy.Column`).

  splits: the training split first, then others with the same columns.
  target_column: texts that belong to the inputs: completions of texts, which
  `encode_text` gets beside them, or captions of images, which become the
  column 'texts'. domain_column: says where a row is from; its values become the
  column 'domain', int32 [M], in the order in which rows have them.
  need_labels: without, data that has no labels has one class.
  answer: what the label column holds, one of `answers.KINDS`.
  prepare: makes each image what a model wants, in place of `image_size`. The
  groups are int32 [M], -1 outside the training split, or None without a
  `group_column`. progress: show a bar when rows are read. places: folders in
  which images that rows name by a path may lie.
  """
  features = next(iter(splits.values())).features
  others = (group_column, target_column, domain_column)
  if need_labels or label_column or _label_columns(features, others):
    label_column = find_label(features, label_column, *others)
  input_column = find_input(features, input_column, (label_column, *others))
  used = {'input': input_column, 'label': label_column,
          'target': target_column, 'domain': domain_column}  # fmt: skip
  for name, split in splits.items():
    for flag, column in used.items():
      if column:
        kind = f'column of the {name} split'
        names.pick(f'`{flag}_column`', column, split.features, kind)
  groups = _groups(splits, group_column) if group_column else None
  if label_column and answer != 'classes':
    found = answers.read(splits, label_column, answer)
  elif label_column:
    found = Answers(*_classes(splits, label_column, need_labels))
  else:
    count = sum(len(split) for split in splits.values())
    found = Answers({'labels': np.zeros(count, np.int32)}, ('all',))
  columns = inputs.columns(
    splits,
    input_column,
    target_column,
    image_size=image_size,
    encode_text=encode_text,
    prepare=prepare,
    progress=progress,
    places=places,
  )
  columns = columns | found.columns
  if domain_column:
    columns[DOMAIN] = _domains(splits, domain_column)
  return Table(columns, found.names, found.outputs), groups


def _classes(splits, column: str, learned: bool):
  numbers, names = labels.read(splits, column, learned)
  return {'labels': numbers}, names


def find_input(features: Any, column: str, others: tuple[str, ...]) -> str:
  """The column of images or texts: as named, or the only image column, or
  the only one with a usual name."""
  import datasets

  if column:
    return names.pick('`input_column`', column, features, 'column')
  free = {k: v for k, v in features.items() if k not in others}
  found = [k for k, v in free.items() if isinstance(v, datasets.Image)]
  usual = [k for k in free if k.lower() in INPUT_NAMES]
  found = found or [k for k in usual if inputs.holds_images(free[k])] or usual
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


def _values(splits, name: str, column: str, flag: str) -> list:
  """The values of a column, which every row has."""
  values = labels.values(splits[name], column)
  if any(value is None for value in values):
    raise ValueError(
      f'column {column!r} of the {name} split has rows without a value. Name '
      f'another: `{flag}`.'
    )
  return list(values)


def _domains(splits, column: str) -> np.ndarray:
  flag = 'domain_column'
  values = [v for name in splits for v in _values(splits, name, column, flag)]
  code = {value: i for i, value in enumerate(dict.fromkeys(values))}
  return np.asarray([code[value] for value in values], np.int32)


def _groups(splits, column):
  (name, split), *others = splits.items()
  names.pick('`group_column`', column, split.features, 'column')
  values = _values(splits, name, column, 'group_column')
  code = {value: i for i, value in enumerate(dict.fromkeys(values))}
  groups = [code[value] for value in values]
  return np.asarray(groups + [-1] * sum(len(s) for _, s in others), np.int32)
