"""What is said of language models beside their perplexity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedms_jax.data import lazy, new_tokenizer
from fedms_jax.shell import side_files
from fedms_jax.shell.config import Config
from fedms_jax.shell.world import World


def add_bits(
  config: Config, world: World, pooled: np.ndarray, scores: dict[str, Any]
) -> None:
  """Adds 'bits_per_byte' to the scores of each model of next tokens, by which
  those of different tokenizers compare: nats / (ln 2 x bytes of the text that
  is predicted), over the pooled rows.

  Tokens that stand for no text, such as the end of one, are predicted like
  others and have no bytes. It is left out where tokens have no length in
  bytes. pooled: row numbers.
  """
  if config.model.head != 'causal_lm' or world.checkpoint is None:
    return
  tokenizer, _ = side_files.tokenizer(world.checkpoint)
  lengths = new_tokenizer.byte_lengths(tokenizer)
  if lengths is None or not len(pooled):
    return
  columns = world.data.table.columns
  name = 'targets' if 'targets' in columns else 'inputs'
  tokens = lazy.take({name: columns[name]}, pooled)[name][:, 1:]
  learned = tokens[tokens >= 0]
  # The token at the end of a text may be none of the tokenizer's.
  size = int(lengths[learned[learned < len(lengths)]].sum())
  if not size:
    return
  for found in scores['models'].values():
    nats = found['pooled_loss'] * len(learned)
    found['bits_per_byte'] = nats / (math.log(2) * size)
