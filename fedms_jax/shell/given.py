"""Data of a plugin, or of a Python program, as a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedms_jax.data import arrays, sources
from fedms_jax.shell.config import DataConfig


def source(
  value: Any,
  d: DataConfig,
  seed: int,
  progress: bool,
  reading: Mapping[str, Any],
) -> sources.Source:
  """The source that a value is, or that it gives when called: `Arrays`, a
  `Source`, a `datasets.Dataset`, or several by the names of their splits.

  reading: what the model asks, see `foundation.reading`.

  Raises:
    ValueError: it is something else, or not what the model reads.
  """
  found = value() if callable(value) else value
  if isinstance(found, sources.Source):
    return found
  if isinstance(found, arrays.Arrays):
    return arrays.source(found, reading.get('answer', 'classes'))
  splits = found if isinstance(found, Mapping) else {d.train_split: found}
  if not all(hasattr(split, 'features') for split in splits.values()):
    raise ValueError(
      f'the data is {type(found).__name__}; allowed: what `from_arrays` or '
      '`from_clients` gives, a `datasets.Dataset`, or several by their splits.'
    )
  if d.train_split not in splits:
    raise ValueError(
      f'--data.train_split={d.train_split} is none of the splits '
      f'{", ".join(splits)}. Name one of them.'
    )
  return sources.of_splits(
    splits[d.train_split],
    splits.get(d.test_split),
    input_column=d.input_column,
    label_column=d.label_column,
    group_column=d.group_column,
    image_size=d.image_size,
    max_rows=d.max_rows,
    seed=seed,
    progress=progress,
    **{'need_labels': True, **reading},
  )
