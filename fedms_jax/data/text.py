"""Texts as tokens, by the tokenizer that belongs to the checkpoint.

Columns are int32 [M, T], as wide as the longest text, and -1 is padding.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.data import draws, lazy
from fedms_jax.data.inputs import PADDING
from fedms_jax.data.sources import Source
from fedms_jax.data.tasks import DOMAIN

FILE = 'tokenizer.json'
DRAWN = 1 << 16  # rows of masks that are drawn at a time
HIDDEN, REPLACED = 0.8, 0.1  # shares of masked tokens; the rest stays


def tokenizer(folder: str | os.PathLike) -> Any:
  """The `tokenizers.Tokenizer` of a checkpoint, without its own padding."""
  import tokenizers

  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    raise ValueError(
      f'{path} does not exist, and texts need it. Make it with '
      'transformers.AutoTokenizer.from_pretrained(folder)'
      '.save_pretrained(folder).'
    )
  with _mended(f'{path} is no tokenizer'):
    found = tokenizers.Tokenizer.from_file(str(path))
  found.no_padding()
  return found


@contextlib.contextmanager
def _mended(what: str):
  """Turns what `tokenizers` raises, panics included, into a `ValueError`."""
  try:
    yield
  except (KeyboardInterrupt, SystemExit, GeneratorExit):
    raise
  except BaseException as error:  # a panic is no Exception
    raise ValueError(f'{what}: {error}. Fetch it again.') from error


class Encoder(NamedTuple):
  """Turns texts into the columns that a task learns from.

  objective: 'whole' gives 'inputs' alone. 'next' puts the token `end` (-1: no
  such token) where a text ends, so not where it is cut; with completions,
  'inputs' are prompt and completion, and 'targets' the completion alone.
  'masked' hides a `fraction` of the tokens behind the token `mask`, drawn once
  by `seed` (as BERT's own training did, arXiv 1810.04805), and 'targets' are
  what was hidden; if `fresh`, nothing is hidden yet, and 'targets' are all
  tokens that may be.
  Negative targets are not learned. side: where long texts are cut.
  """

  tokenizer: Any
  max_tokens: int
  objective: str = 'whole'
  end: int = -1
  mask: int = -1
  fraction: float = 0.15
  fresh: bool = False
  seed: int = 0
  side: str = 'right'

  def __call__(
    self, texts: Sequence[str], completions: Sequence[str] | None = None
  ) -> dict[str, np.ndarray]:
    """The columns [M, T] of these texts, which are all."""
    columns = self.tokens(texts, completions)
    return self.finish(columns, np.arange(len(texts)), len(texts))

  def tokens(
    self, texts: Sequence[str], completions: Sequence[str] | None = None
  ) -> dict[str, np.ndarray]:
    """The columns of some texts, T of these; 'targets' of 'masked' are all
    tokens that may be hidden."""
    if self.objective == 'next':
      return self._next(texts, completions)
    found = self._encoded(texts)
    columns = {'inputs': padded([e.ids for e in found])}
    if self.objective == 'masked':
      special = padded([e.special_tokens_mask for e in found])
      columns['targets'] = np.where(special == 0, columns['inputs'], PADDING)
    return columns

  def finish(
    self, columns: dict[str, np.ndarray], rows: np.ndarray, count: int
  ) -> dict[str, np.ndarray]:
    """What is learned from tokens [n, T] of the `rows` [n], in rising order,
    of `count`."""
    if self.objective == 'masked' and not self.fresh:
      return masked(
        columns,
        rows,
        count,
        mask=self.mask,
        words=self.tokenizer.get_vocab_size(),
        fraction=self.fraction,
        seed=self.seed,
      )
    if 'targets' in columns and not (columns['targets'] >= 0).any():
      raise ValueError(
        f'no completion fits into {self.max_tokens} tokens beside its prompt. '
        'Raise `max_tokens`.'
      )
    return columns

  def _encoded(
    self, texts, special: bool = True, room: int = 0, side: str = ''
  ):
    with _mended('tokenizer.json fails on a text'):
      self.tokenizer.enable_truncation(
        self.max_tokens - room, direction=side or self.side
      )
      return self.tokenizer.encode_batch(
        list(texts), add_special_tokens=special
      )

  def _next(self, texts, completions):
    end = [self.end] if self.end >= 0 else []
    if completions is None:
      # Cut on the left, a text keeps its end; on the right it has none.
      room = len(end) if self.side == 'left' else 0
      rows = [
        self._open(e) + ([] if e.overflowing and not room else end)
        for e in self._encoded(texts, room=room)
      ]
      return {'inputs': padded([row[: self.max_tokens] for row in rows])}
    rows = [self._open(e) for e in self._encoded(texts)]
    answers = [
      e.ids for e in self._encoded(completions, special=False, side='right')
    ]
    both, targets = [], []
    for row, answer in zip(rows, answers, strict=True):
      answer = answer + end
      both.append((row + answer)[: self.max_tokens])
      targets.append(([PADDING] * len(row) + answer)[: self.max_tokens])
    return {'inputs': padded(both), 'targets': padded(targets)}

  def _open(self, encoding) -> list[int]:
    """The tokens of a text without the end token that the tokenizer itself
    puts behind every text, a cut one too."""
    ids = encoding.ids
    closed = bool(ids) and ids[-1] == self.end
    return ids[:-1] if closed and encoding.special_tokens_mask[-1] else ids


def padded(rows: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
  """Rows of different lengths as int32 [M, T]."""
  out = np.full((len(rows), max(map(len, rows), default=0)), PADDING, np.int32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = row
  return out


def masked(
  columns: dict[str, np.ndarray],
  rows: np.ndarray,
  count: int,
  *,
  mask: int,
  words: int,
  fraction: float,
  seed: int,
) -> dict[str, np.ndarray]:
  """Hides some of the 'targets' [n, T] among the 'inputs', and leaves those.

  Of a `fraction`, at least one of a row, 8 in 10 become `mask`, 1 in 10 any
  of `words`, 1 stays. The `rows` [n], in rising order, are some of `count`:
  a row is hidden the same, whichever others are.
  """
  tokens, allowed = columns['inputs'], columns['targets'] >= 0
  rng = draws.generator(seed, Stream.MASKS)
  width = tokens.shape[1]
  draw = np.where(allowed, _rows(rng.random, rows, count, width), 2.0)
  least = draw.min(axis=1, keepdims=True, initial=2.0)
  chosen = ((draw < fraction) | (draw == least)) & allowed
  fate = _rows(rng.random, rows, count, width)
  others = _rows(lambda s: rng.integers(0, words, s), rows, count, width)
  inputs = np.where(chosen & (fate < HIDDEN), mask, tokens)
  replaced = chosen & (fate >= HIDDEN) & (fate < HIDDEN + REPLACED)
  inputs = np.where(replaced, others, inputs)
  targets = np.where(chosen, tokens, PADDING)
  return {
    'inputs': inputs.astype(np.int32),
    'targets': targets.astype(np.int32),
  }


def _rows(draw, rows, count: int, width: int) -> np.ndarray:
  """Some rows of `draw((count, width))`, drawn a few at a time to save
  memory."""
  found = []
  for start in range(0, count, DRAWN):
    drawn = draw((min(DRAWN, count - start), width))
    first, last = np.searchsorted(rows, (start, start + DRAWN))
    found.append(drawn[rows[first:last] - start])
  return np.concatenate(found) if found else draw((0, width))


def _bins(keys, lengths, most: int) -> list[tuple[bool, list[int]]]:
  """(whether they are test rows, the texts of a row) for each row, training
  rows first. keys: of each text, whether it is tested first; texts of one key
  share rows."""
  open_bins: dict[tuple, list[int]] = {}
  bins: list[tuple[bool, list[int]]] = []
  used: dict[tuple, int] = {}
  for row, key in enumerate(keys):
    if key not in open_bins or used[key] + lengths[row] > most:
      open_bins[key], used[key] = [], 0
      bins.append((key[0], open_bins[key]))
    open_bins[key].append(row)
    used[key] += int(lengths[row])
  return sorted(bins, key=lambda one: one[0])  # stable


def pack(source: Source, max_tokens: int) -> Source:
  """Puts whole texts one after another into rows of `max_tokens`.

  Only texts of the same split, label, group and domain share a row, and public
  ones none with others, so that rows are dealt to clients as texts were, and
  none is cut in two, one half of which could be a test row. A text sees those
  before it in its row. The lengths of all texts say which share a row, so all
  texts are read.
  """
  tokens = lazy.whole(
    {
      name: column
      for name, column in source.table.columns.items()
      if name in ('inputs', 'targets')
    }
  )
  lengths = (tokens['inputs'] != PADDING).sum(axis=1)
  labels = source.table.columns['labels']
  groups = source.groups if source.groups is not None else np.zeros_like(labels)
  domains = source.table.columns.get(DOMAIN, np.zeros_like(labels))
  tested = np.isin(np.arange(len(labels)), source.test_rows)
  public = _among(source.public, len(labels))
  keys = zip(
    tested.tolist(),
    labels.tolist(),
    groups.tolist(),
    domains.tolist(),
    public.tolist(),
    strict=True,
  )
  bins = _bins(keys, lengths, max_tokens)
  members = [rows for _, rows in bins]
  columns = {
    name: padded([_joined(column, lengths, rows) for rows in members])
    for name, column in tokens.items()
  }
  first = np.array([rows[0] for rows in members], np.int64)
  columns['labels'] = labels[first]
  if DOMAIN in source.table.columns:
    columns[DOMAIN] = domains[first]
  count = sum(not test for test, _ in bins)
  numbers = np.arange(len(members), dtype=np.int32)
  return source._replace(
    table=source.table._replace(columns=columns),
    train_rows=numbers[:count],
    public=None if source.public is None else numbers[public[first]],
    test_rows=numbers[count:],
    groups=None if source.groups is None else groups[first],
  )


def _among(rows: np.ndarray | None, count: int) -> np.ndarray:
  """Which of `count` rows are among `rows`, bool [count]; None: no rows."""
  out = np.zeros(count, bool)
  if rows is not None:
    out[rows] = True
  return out


def _joined(column: np.ndarray, lengths: np.ndarray, rows: list[int]):
  return np.concatenate([column[row, : lengths[row]] for row in rows])
