"""Tokenizers that are made: bytes, and a BPE of texts."""

import numpy as np
import pytest

from fedms_jax.data import new_tokenizer

TEXTS = ['the cat sat on the mat', 'the hat of the cat', 'naïve café'] * 20


@pytest.mark.parametrize('around', [False, True])
def test_bytes_are_tokens_and_nothing_is_lost(around):
  made = new_tokenizer.of_bytes(around)
  marks = new_tokenizer.marks(around)
  assert made.get_vocab_size() == 256 + len(marks)
  assert [made.token_to_id(m) for m in marks] == list(range(len(marks)))
  text = 'naïve café\n\t☃'
  ids = made.encode(text).ids
  assert len(ids) == len(text.encode()) + (2 if around else 0)
  assert made.decode(ids) == text


@pytest.mark.parametrize('around', [False, True])
def test_a_bpe_learns_its_texts_and_reads_all_others(around):
  made = new_tokenizer.trained(TEXTS, 300, around)
  assert made.get_vocab_size() <= 300
  marks = new_tokenizer.marks(around)
  assert [made.token_to_id(m) for m in marks] == list(range(len(marks)))
  plain = new_tokenizer.of_bytes(around)
  assert len(made.encode(TEXTS[0]).ids) < len(plain.encode(TEXTS[0]).ids)
  assert made.decode(made.encode('Zebra ☃').ids) == 'Zebra ☃'
  again = new_tokenizer.trained(TEXTS, 300, around)
  assert again.to_str() == made.to_str()


def test_a_bpe_of_no_text_is_refused():
  with pytest.raises(ValueError, match='public_fraction'):
    new_tokenizer.trained(['  '], 300, False)


@pytest.mark.parametrize('around', [False, True])
def test_the_lengths_of_tokens_are_those_of_their_text(around):
  made = new_tokenizer.trained(TEXTS, 300, around)
  lengths = new_tokenizer.byte_lengths(made)
  for text in (*TEXTS[:3], '☃ and <>'):
    ids = np.array(made.encode(text).ids)
    assert lengths[ids].sum() == len(text.encode())


def test_other_tokenizers_have_no_lengths():
  import tokenizers

  words = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0}))
  words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  assert new_tokenizer.byte_lengths(words) is None
