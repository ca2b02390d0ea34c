"""Images, pixels and texts of `datasets` splits, read row by row.

The rows of all splits are numbered one split after another. What depends on
all rows (whether any image has color, how many tokens the longest text has)
shows by itself when all are read; it is looked for only if some are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from fedms_jax.data import files, images, readers
from fedms_jax.data.lazy import Arrays, Column
from fedms_jax.data.readers import Rows, Splits

TEXTS = ('string', 'large_string')
BYTES = ('binary', 'large_binary')
PADDING = -1  # of tokens


class EncodeText(Protocol):
  """Makes columns of texts, and of what belongs to each where the data has it.

  max_tokens: T is at most this.
  """

  max_tokens: int

  def tokens(
    self, texts: Sequence[str], others: Sequence[str] | None = None
  ) -> Arrays:
    """Columns [n, T] of n texts, T of these; each row is of its text alone."""
    ...

  def finish(self, columns: Arrays, rows: np.ndarray, count: int) -> Arrays:
    """The columns that are learned from: of tokens [n, T], which are those of
    the `rows` [n], in rising order, of `count`; T is that of all rows."""
    ...


def holds_images(feature: Any) -> bool:
  """Whether a column has encoded images: by type, as plain bytes, or as the
  struct of bytes and path that other writers of Parquet make of them."""
  import datasets

  if isinstance(feature, dict):
    kinds = [getattr(f, 'dtype', '') for k, f in feature.items() if k != 'path']
    return set(feature) <= {'bytes', 'path'} and all(k in BYTES for k in kinds)
  return isinstance(feature, datasets.Image) or (
    isinstance(feature, datasets.Value) and feature.dtype in BYTES
  )


def columns(
  splits: Splits,
  column: str,
  target_column: str,
  *,
  image_size: int,
  encode_text: EncodeText | None,
  prepare: images.Prepare | None,
  progress: bool,
  places: files.Places = (),
) -> dict[str, Column]:
  """The columns of the inputs, see `features.read`; rows are not read yet."""
  import datasets

  feature = next(iter(splits.values())).features[column]
  if isinstance(feature, datasets.Value) and feature.dtype in TEXTS:
    _check_no_image_size(column, image_size)
    reader = _texts(splits, (column, target_column), encode_text, progress)
    return {name: Column(reader, name) for name in reader.names}
  pictures = holds_images(feature)
  if isinstance(feature, (datasets.Value, dict)) and not pictures:
    raise ValueError(
      f'column {column!r} has {_kind(feature)} values; allowed: images, texts, '
      'or arrays of pixels. Name another: `input_column`.'
    )
  prepare = prepare or images.square(image_size)
  if pictures:
    reader = Images(splits, column, prepare, progress, places)
  else:
    reader = Pixels(splits, column, prepare, progress)
  found = {'inputs': Column(reader, 'inputs')}
  if target_column:
    captions = _texts(splits, (target_column, ''), encode_text, progress)
    found['texts'] = Column(captions, 'inputs')
  return found


def _kind(feature: Any) -> str:
  """The type of a column, for a message."""
  return getattr(feature, 'dtype', None) or f'{{{", ".join(feature)}}}'


class Images(Rows):
  """Reads encoded images as uint8 [n, H, W, 3], or [n, H, W, 1] if all rows
  are gray."""

  names = ('inputs',)

  def __init__(self, splits, column, prepare: images.Prepare, progress, places):
    import datasets

    raw = datasets.Image(decode=False)
    splits = {
      name: split.select_columns(column).cast_column(column, raw)
      for name, split in splits.items()
    }
    super().__init__(splits, progress)
    self._column = column
    self._prepare = prepare
    self._places = places

  @functools.cached_property
  def like(self):
    first = images.decode(self._encoded(np.arange(1)), 1, self._prepare)
    everybody = self._encoded(np.arange(self.count))
    color = first.shape[-1] > 1 or any(images.has_color(*x) for x in everybody)
    shape = (0, *first.shape[1:3], 3 if color else 1)
    return {'inputs': np.zeros(shape, np.uint8)}

  def read(self, rows):
    order = np.argsort(rows, kind='stable')
    rising = rows[order]
    like = None if self.everything(rising) else self.like['inputs']
    return {
      'inputs': images.decode(
        self._encoded(rising), len(rows), self._prepare, like, order
      )
    }

  def _encoded(self, rows) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each image is from, and its bytes or path."""
    for name, numbers, piece in self.pieces(rows):
      for i, item in zip(numbers, piece[self._column], strict=True):
        if not item or not (item['bytes'] or item['path']):
          raise ValueError(
            f'row {i} of the {name} split has no image in {self._column!r}. '
            'Remove such rows, or name another column: `input_column`.'
          )
        where = f'{self._column!r} of row {i} of the {name} split'
        if not item['bytes']:
          path = files.inside(item['path'], self._places, where)
          item = {'bytes': None, 'path': path}
        yield where, item


class Pixels(Rows):
  """Reads arrays of whole numbers as uint8 [n, H, W, 1 or 3]."""

  names = ('inputs',)

  def __init__(self, splits, column, prepare: images.Prepare, progress):
    splits = {
      name: split.select_columns(column) for name, split in splits.items()
    }
    super().__init__(splits, progress)
    self._column = column
    self._prepare = prepare

  @functools.cached_property
  def like(self):
    (_, _, piece), *_ = self.pieces(np.arange(1))
    return {'inputs': self._images(piece)[:0]}

  def read(self, rows):
    order = np.argsort(rows, kind='stable')
    rising, done = rows[order], 0
    out = None if self.everything(rising) else self._empty(len(rows))
    for _, numbers, piece in self.pieces(rising):
      made = self._images(piece)
      if out is None:
        out = np.zeros((len(rows), *made.shape[1:]), np.uint8)
      if made.shape[1:] != out.shape[1:]:
        raise self._ragged(f'{made.shape[1:]} and {out.shape[1:]}')
      out[order[done : done + len(numbers)]] = made
      done += len(numbers)
    return {'inputs': self._empty(0) if out is None else out}

  def _empty(self, count: int) -> np.ndarray:
    return np.zeros((count, *self.like['inputs'].shape[1:]), np.uint8)

  def _images(self, piece) -> np.ndarray:
    try:
      values = np.asarray(piece[self._column])
    except ValueError as error:
      raise self._ragged(error) from error
    where = f'column {self._column!r}'
    return images.resize(images.from_arrays(values, where), self._prepare)

  def _ragged(self, what) -> ValueError:
    return ValueError(
      f'column {self._column!r} has arrays of different shapes ({what}).'
    )


class Texts(Rows):
  """Reads texts, alone or with the texts that belong to them, as tokens
  int32 [n, T]; T is that of the longest row."""

  def __init__(self, splits, pair, encode: EncodeText, progress):
    self._pair = [column for column in pair if column]
    splits = {
      name: split.select_columns(self._pair) for name, split in splits.items()
    }
    super().__init__(splits, progress)
    self._encode = encode

  @property
  def names(self):
    return tuple(self._nothing())

  @functools.cached_property
  def like(self):
    width = self._width()
    return {
      name: np.zeros((0, width), values.dtype)
      for name, values in self._nothing().items()
    }

  def _nothing(self) -> Arrays:
    """The tokens of no text."""
    return self._encode.tokens(*([] for _ in self._pair))

  def read(self, rows):
    order = np.argsort(rows, kind='stable')
    rising = rows[order]
    parts = [self._tokens(found) for found in self._strings(rising)]
    parts = parts or [self._nothing()]
    if self.everything(rising):
      width = max(part['inputs'].shape[1] for part in parts)
    else:
      width = self.like['inputs'].shape[1]
    out = {
      name: np.concatenate([_wide(part[name], width) for part in parts])
      for name in self.names
    }
    back = np.argsort(order)
    found = self._encode.finish(out, rising, self.count)
    return {name: values[back] for name, values in found.items()}

  def strings(self, rows: np.ndarray) -> list[str]:
    """The texts of rows in rising order, those of all columns."""
    return [
      text for found in self._strings(rows) for texts in found for text in texts
    ]

  def are_empty(self) -> bool:
    """Whether there is no text at all; of others the first ones tell."""
    return self.count > 0 and not any(
      text.strip()
      for texts, *_ in self._strings(np.arange(self.count))
      for text in texts
    )

  def are_names_of_images(self) -> bool:
    """Whether all texts look like it; of others the first ones tell."""
    return self.count > 0 and all(
      text.lower().endswith(files.IMAGE_SUFFIXES)
      for texts, *_ in self._strings(np.arange(self.count))
      for text in texts
    )

  def _width(self) -> int:
    """T: the texts with most characters come first, and most likely reach the
    limit, where there is nothing left to find."""
    lengths = np.concatenate(
      [
        np.sum([list(map(len, texts)) for texts in found], axis=0)
        for found in self._strings(np.arange(self.count))
      ]
    )
    order, width = np.argsort(-lengths, kind='stable'), 0
    for start in range(0, self.count, readers.BATCH):
      for found in self._strings(np.sort(order[start : start + readers.BATCH])):
        width = max(width, self._tokens(found)['inputs'].shape[1])
      if width >= self._encode.max_tokens:
        break
    return width

  def _tokens(self, found: list[list[str]]) -> Arrays:
    made = self._encode.tokens(*found)
    for name, values in made.items():
      if len(values) != len(found[0]):
        raise ValueError(
          f'encode_text gave {len(values)} rows of {name!r} for '
          f'{len(found[0])} texts.'
        )
    return made

  def _strings(self, rows) -> Iterator[list[list[str]]]:
    """The texts of rows, batch by batch, one list for each column."""
    for split, numbers, piece in self.pieces(rows):
      found = [list(piece[column]) for column in self._pair]
      for column, texts in zip(self._pair, found, strict=True):
        for i, text in zip(numbers, texts, strict=True):
          if not isinstance(text, str):
            raise ValueError(
              f'row {i} of the {split} split has no text in {column!r}. Remove '
              'such rows, or name another column: `input_column`, '
              '`target_column`.'
            )
      yield found


def _wide(tokens: np.ndarray, width: int) -> np.ndarray:
  """Tokens [n, T], filled up with padding to `width`."""
  room = ((0, 0), (0, width - tokens.shape[1]))
  return np.pad(tokens, room, constant_values=PADDING)


def _texts(splits, pair, encode_text, progress) -> Texts:
  reader, column = Texts(splits, pair, encode_text, progress), pair[0]
  if reader.are_empty():
    raise ValueError(
      f'all {reader.count} rows of column {column!r} are empty texts: there is '
      'nothing to learn. Name another: `input_column`, `target_column`.'
    )
  if reader.are_names_of_images():
    raise ValueError(
      f'column {column!r} has names of image files, which are not followed. '
      'Put the images in one folder per label, or in Parquet.'
    )
  if encode_text is None:
    raise ValueError(
      f'column {column!r} has texts, which needs a text model: `encode_text`. '
      'Or name a column of images: `input_column`.'
    )
  return reader


def _check_no_image_size(column: str, image_size: int) -> None:
  if image_size:
    raise ValueError(
      f'`image_size`={image_size} is for images; column {column!r} has '
      'texts. Leave it 0.'
    )
