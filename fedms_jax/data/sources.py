"""Sources of examples: embedded ones, and whatever `datasets` reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Table
from fedms_jax.data import answers, draws, features, images, inputs, splits

EMBEDDED = ('digits', 'synthetic')


class Source(NamedTuple):
  """Examples before they are divided.

  train_rows, test_rows: int32 row numbers of the table; test_rows is empty
  if there is no test split. groups: int32 [M], the natural group of each row
  (-1: none), or None. public_shift: the domain shift of public images that
  goes with this source unless the user asks for another; partition: how its
  rows are dealt, so, too. public: training rows that are the server's; None:
  they are still to be drawn. group_names: of the groups, where they have any.
  """

  table: Table
  train_rows: np.ndarray
  test_rows: np.ndarray
  groups: np.ndarray | None = None
  public_shift: str = 'none'
  public: np.ndarray | None = None
  group_names: tuple[str, ...] = ()
  partition: str = 'dirichlet'


def load(
  source: str,
  *,
  subset: str = '',
  revision: str = '',
  train_split: str = 'train',
  test_split: str = 'test',
  input_column: str = '',
  label_column: str = '',
  group_column: str = '',
  image_size: int = 0,
  max_rows: int = 0,
  seed: int = 0,
  synthetic_rows: int = 4000,
  synthetic_classes: int = 10,
  encode_text: inputs.EncodeText | None = None,
  target_column: str = '',
  domain_column: str = '',
  need_labels: bool = True,
  answer: str = 'classes',
  prepare: images.Prepare | None = None,
  progress: bool = False,
) -> Source:
  """Loads `digits`, `synthetic`, or what `datasets` finds at `source`.

  `max_rows` > 0 keeps a random choice of so many rows of each split. Images
  are uint8, resized to `image_size` unless 0, or made ready by `prepare`.
  Labels of all splits share one map. Texts become the columns that
  `encode_text` makes of them. What is not embedded is lazy, but for labels
  and groups. For `target_column`, `domain_column`, `need_labels`, `answer` and
  `progress` see `features.read`; of embedded sources labels are classes,
  levels, or values.
  Raises `ValueError` if the source or a column cannot be found or read.
  """
  if source in EMBEDDED:
    _check_unused(
      source,
      subset=subset,
      revision=revision,
      input_column=input_column,
      label_column=label_column,
      group_column=group_column,
      target_column=target_column,
      domain_column=domain_column,
    )
    prepare = prepare or images.square(image_size)
    if source == 'digits':
      found = _whole(*_digits(), prepare, max_rows, seed)
      found = found._replace(public_shift='dim', partition='classes')
    else:
      examples = _synthetic(synthetic_rows, synthetic_classes, seed)
      found = _whole(*examples, prepare, max_rows, seed)
    return found._replace(table=_answering(source, found.table, answer))
  train, test = splits.read(
    source,
    embedded=EMBEDDED,
    subset=subset,
    revision=revision,
    train_split=train_split,
    test_split=test_split,
  )
  return of_splits(
    train,
    test,
    places=splits.places(source),
    input_column=input_column,
    label_column=label_column,
    group_column=group_column,
    image_size=image_size,
    max_rows=max_rows,
    seed=seed,
    encode_text=encode_text,
    target_column=target_column,
    domain_column=domain_column,
    need_labels=need_labels,
    answer=answer,
    prepare=prepare,
    progress=progress,
  )


def of_splits(
  train, test=None, *, max_rows: int = 0, seed: int = 0, **reading
) -> Source:
  """The source of `datasets.Dataset` objects, a training split and maybe a
  test split; see `load`. reading: as `features.read` takes it."""
  parts = {'train': train} if test is None else {'train': train, 'test': test}
  parts = {
    name: part.select(_kept(len(part), max_rows, seed, i))
    for i, (name, part) in enumerate(parts.items())
  }
  table, groups = features.read(parts, **reading)
  rows = np.arange(len(table.columns['labels']), dtype=np.int32)
  count = len(parts['train'])
  return Source(table, rows[:count], rows[count:], groups)


def _check_unused(source, **flags):
  for flag, value in flags.items():
    if value:
      raise ValueError(
        f'`{flag}`={value!r} is not for the embedded source {source!r}; '
        'allowed: empty. Leave it out, or name another `source`.'
      )


def _whole(pixels, labels, num_classes, prepare, max_rows, seed):
  """The source of embedded examples, which have no test split."""
  kept = _kept(len(labels), max_rows, seed, 0)
  columns = {
    'inputs': images.resize(pixels[kept], prepare),
    'labels': labels[kept],
  }
  table = Table(columns, tuple(str(label) for label in range(num_classes)))
  rows = np.arange(len(kept), dtype=np.int32)
  return Source(table, rows, rows[:0])


def _answering(source: str, table: Table, answer: str) -> Table:
  """The table of an embedded source whose labels are read as an answer."""
  if answer == 'classes':
    return table
  if answer == 'tags':
    raise ValueError(
      f'`source`={source} has one label a row, no lists of tags. Name data of '
      'your own, whose `label_column` holds lists.'
    )
  numbers = table.columns['labels']
  if answer == 'levels':
    found = answers.levels(numbers, table.label_names)
  else:
    found = answers.values(numbers[:, None].astype(float), len(numbers))
  return Table(table.columns | found.columns, found.names, found.outputs)


def _kept(count, max_rows, seed, split):
  if not max_rows or count <= max_rows:
    return np.arange(count)
  rng = draws.generator(seed, Stream.KEEP, split)
  return np.sort(rng.choice(count, max_rows, replace=False))


def _digits():
  """1,797 handwritten digits, 8 x 8 pixels (scikit-learn's copy of UCI's)."""
  from sklearn.datasets import load_digits

  features, labels = load_digits(return_X_y=True)
  pixels = np.rint(np.reshape(features, (-1, 8, 8, 1)) * (255 / 16))
  return pixels.astype(np.uint8), np.asarray(labels, np.int32), 10


def _synthetic(num_rows, num_classes, seed):
  """A template of 4 x 4 squares per class, moved by up to a pixel, in noise."""
  rng = draws.generator(seed, Stream.SYNTHETIC)
  templates = (
    rng.uniform(40, 215, (num_classes, 4, 4)).repeat(2, 1).repeat(2, 2)
  )
  labels = rng.permutation(np.arange(num_rows) % num_classes).astype(np.int32)
  down, right = rng.integers(-1, 2, (2, num_rows, 1, 1))
  side = np.arange(8)
  pixels = templates[
    labels[:, None, None],
    (side[:, None] + down) % 8,
    (side[None, :] + right) % 8,
  ]
  pixels = pixels + rng.normal(0, 25, pixels.shape)
  pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
  return pixels[..., None], labels, num_classes
