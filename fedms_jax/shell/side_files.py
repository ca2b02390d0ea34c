"""The files of a checkpoint, held against each other.

Tokenizer, preprocessor, labels and config.json are written by different
hands; where they disagree, or say what is not built, no number is right.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import jax

from fedms_jax.data import text, tokenizer_words
from fedms_jax.data.tokenizer_words import Words
from fedms_jax.models import labels, preprocessors, pretrained
from fedms_jax.persistence import model_files
from fedms_jax.persistence.model_files import Checkpoint


def preprocessor(checkpoint: Checkpoint) -> dict:
  """What the files say, or else what is usual for the family."""
  if checkpoint.preprocessor:
    return checkpoint.preprocessor
  side = pretrained.image_side(checkpoint.config)
  found: dict[str, Any] = {'size': side, 'crop_size': side}
  kind = checkpoint.config['model_type']
  if kind == 'deit':
    found |= {'do_center_crop': False, 'resample': 2}
  return preprocessors.completed(found, kind, 'config.json')


def check_side(checkpoint: Checkpoint) -> None:
  """Raises `ValueError` if images come out in another size than the model's,
  where that is known without them."""
  side = preprocessors.side(preprocessor(checkpoint))
  if side is not None:
    check_shape(checkpoint, (side, side))


def check_shape(checkpoint: Checkpoint, shape: Sequence[int]) -> None:
  side = pretrained.image_side(checkpoint.config, checkpoint.preprocessor)
  if tuple(shape) != (side, side):
    raise ValueError(
      f'{checkpoint.folder}: the preprocessor makes images of {shape[0]} x '
      f'{shape[1]}, and config.json has image_size={side}; allowed: the same '
      'size. Mend one of the files.'
    )


def outputs(
  head: str, reference: str, names: Sequence[str], checkpoint: Checkpoint
) -> list[int]:
  """The outputs of the checkpoint's own head in the order of the data.

  head: what the model is for. reference: see `Model`. names: of the classes.
  """
  where = str(checkpoint.folder / 'config.json')
  if head != 'classification' or not reference:
    raise ValueError(
      f'--model.keep_head: {checkpoint.folder} has no classifier for '
      f'--model.head={head}. Leave it out.'
    )
  said = checkpoint.config.get('architectures') or [reference]
  problem = checkpoint.config.get('problem_type')
  usual = 'single_label_classification'
  if reference not in said or problem not in (None, usual):
    shown = said if reference not in said else problem
    raise ValueError(
      f'--model.keep_head: {where} says that its head is for {shown}; allowed: '
      f'{reference}, {usual}. Train a new head.'
    )
  return labels.order(labels.named(checkpoint.config, where), names, where)


def tokenizer(checkpoint: Checkpoint) -> tuple[Any, Words]:
  """The tokenizer, none of whose ids is beyond the model's embeddings."""
  folder = checkpoint.folder
  found = text.tokenizer(folder)
  where = str(folder / model_files.TOKENIZER)
  words = tokenizer_words.read(found, checkpoint.tokenizer, where)
  ids = found.get_vocab(with_added_tokens=True)
  rows = pretrained.words(checkpoint.config).vocabulary
  beyond = [token for token, number in ids.items() if number >= rows]
  if beyond:
    raise ValueError(
      f'{folder}/tokenizer.json has {len(beyond)} tokens, such as '
      f'{beyond[0]!r}, beyond vocab_size={rows} of config.json; allowed: ids '
      f'below it. Take the tokenizer that belongs to the model.'
    )
  return found, words


def padding(checkpoint: Checkpoint) -> int:
  """The token that fills up texts, where the model reads it; -1: the files of
  the tokenizer do not say."""
  said = checkpoint.tokenizer.get('pad_token')
  token = said.get('content') if isinstance(said, dict) else said
  there = (checkpoint.folder / text.FILE).is_file()
  if checkpoint.config['model_type'] not in pretrained.FILLED or not there:
    return -1
  if token is None:
    return -1
  found = text.tokenizer(checkpoint.folder).token_to_id(str(token))
  if found is None:
    raise ValueError(
      f'{checkpoint.folder / model_files.TOKENIZER} has pad_token={token!r}, '
      'which tokenizer.json has not. Save the tokenizer again with '
      'transformers.'
    )
  return found


def end(config: dict) -> int:
  """The token that ends a text by config.json, -1 if there is none."""
  found = config.get('eos_token_id')
  found = found[0] if isinstance(found, list) and found else found
  if found is None:
    return -1
  rows = pretrained.words(config).vocabulary
  if type(found) is not int or not 0 <= found < rows:
    raise ValueError(
      f'config.json has eos_token_id={found!r}; allowed: ids below its '
      f'vocab_size={rows}.'
    )
  return found


def mask(tokenizer) -> int:
  """The token that hides another one."""
  for token in ('[MASK]', '<mask>'):
    found = tokenizer.token_to_id(token)
    if found is not None:
      return found
  raise ValueError(
    '--model.head=masked_lm needs a tokenizer with [MASK] or <mask>; this '
    'one has none. Use causal_lm, or another checkpoint.'
  )


def say_unread(keys: Sequence[str], checkpoint: Checkpoint) -> None:
  """Tells once which words of the files nobody here knows."""
  keys = [*keys, *checkpoint.preprocessor.get('unread', ())]
  if (checkpoint.folder / text.FILE).is_file():
    keys += tokenizer(checkpoint)[1].unread
  if keys and jax.process_index() == 0:
    print(
      f'fedms: note: {checkpoint.folder} has settings that are not known here '
      f'and are left aside: {", ".join(keys)}',
      file=sys.stderr,
    )
