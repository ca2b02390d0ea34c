"""Tokenizers for models that begin with random weights: bytes, or a BPE.

Both work on bytes (as GPT-2's does), so that no text is unknown to them and
every token has a length in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

END = '<|end|>'  # where a text ends, for models of the next token
PAD, UNKNOWN, START, STOP, MASK = '[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'
_AROUND = (PAD, UNKNOWN, START, STOP, MASK)


def marks(around: bool) -> tuple[str, ...]:
  """The special tokens, whose ids come first. around: of BERT, which puts
  marks around a text."""
  return _AROUND if around else (END,)


def of_bytes(around: bool) -> Any:
  """A `tokenizers.Tokenizer` of one token for each byte."""
  import tokenizers

  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  words = [*marks(around), *letters]
  vocabulary = {word: number for number, word in enumerate(words)}
  return _finished(tokenizers.models.BPE(vocabulary, []), around)


def trained(texts: Iterable[str], vocabulary: int, around: bool) -> Any:
  """A byte-level BPE (Sennrich et al., arXiv 1508.07909) of at most so many
  tokens, trained on texts.

  Raises:
    ValueError: there are no texts.
  """
  import tokenizers

  found = [text for text in texts if text.strip()]
  if not found:
    raise ValueError(
      'a BPE is trained on public texts, and there are none. Raise '
      '`public_fraction`, or take bytes as tokens.'
    )
  out = _finished(tokenizers.models.BPE(), around)
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocabulary,
    special_tokens=list(marks(around)),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  out.train_from_iterator(found, trainer)
  return _finished(out.model, around)  # which knows the ids of the marks


def _finished(model: Any, around: bool) -> Any:
  """A tokenizer of this model."""
  import tokenizers

  out = tokenizers.Tokenizer(model)
  byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  out.pre_tokenizer = byte_level
  out.decoder = tokenizers.decoders.ByteLevel()
  if out.get_vocab_size() == 0:
    return out  # not trained yet
  out.add_special_tokens(list(marks(around)))
  if around:
    out.post_processor = tokenizers.processors.TemplateProcessing(
      single=f'{START} $A {STOP}',
      pair=f'{START} $A {STOP} $B:1 {STOP}:1',
      special_tokens=[(t, out.token_to_id(t)) for t in (START, STOP)],
    )
  return out


def byte_lengths(tokenizer: Any) -> np.ndarray | None:
  """Bytes of text that each id stands for, int [V]; of special tokens 0. None:
  the tokenizer does not work on bytes, and its tokens have no such length."""
  import tokenizers

  kind = tokenizers.pre_tokenizers.ByteLevel
  if not isinstance(tokenizer.pre_tokenizer, kind):
    return None
  letters = set(kind.alphabet())
  out = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True), np.int64)
  added = set(tokenizer.get_added_tokens_decoder())
  for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
    if number not in added and set(token) <= letters:
      out[number] = len(token)
  return out


def settings(around: bool, most: int) -> dict[str, Any]:
  """tokenizer_config.json, as transformers reads it. most: tokens of a
  text."""
  names: Sequence[tuple[str, str]] = [('eos_token', END), ('bos_token', END)]
  if around:
    names = [
      ('pad_token', PAD),
      ('unk_token', UNKNOWN),
      ('cls_token', START),
      ('sep_token', STOP),
      ('mask_token', MASK),
    ]
  return dict(names) | {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': most,
    'clean_up_tokenization_spaces': False,
  }
