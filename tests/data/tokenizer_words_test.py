"""tokenizer_config.json is honored, is what is done anyway, or is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers

from fedms_jax.data import text, tokenizer_words
from tests import folders

CONFIG = 'tokenizer_config.json'
LONG = 'ball bread star goal soup moon team salt cloud match'


def bert(lower=True, **kwargs):
  made = folders.tokenizer('bert')
  made.normalizer = tokenizers.normalizers.BertNormalizer(
    lowercase=lower, **kwargs
  )
  return made


def byte_level():
  made = folders.tokenizer('gpt2')
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  return made


def begun():
  """Texts begin with <eos>, as LLaMA's with <s>."""
  made = folders.tokenizer('gpt2')
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single='<eos> $A', special_tokens=[('<eos>', folders.VOCABULARY['<eos>'])]
  )
  return made


def small():
  """Without punctuation, as SigLIP's."""
  made = folders.tokenizer('gpt2')
  made.normalizer = tokenizers.normalizers.Sequence(
    [
      tokenizers.normalizers.Lowercase(),
      tokenizers.normalizers.Replace(tokenizers.Regex('[,.]'), ''),
    ]
  )
  return made


def read(said, made=None):
  return tokenizer_words.read(made or folders.tokenizer('gpt2'), said, CONFIG)


def test_nothing_said_is_cut_on_the_right():
  assert read({}) == tokenizer_words.Words('right', None, ())


def test_the_side_of_the_older_file_holds_unless_the_newer_says():
  made = folders.tokenizer('bert')
  made.enable_truncation(8, direction='left')
  assert read({}, made).side == 'left'
  assert read({'truncation_side': 'right'}, made).side == 'right'


def test_the_most_tokens_are_read_and_no_limit_is_none():
  assert read({'model_max_length': 12}).most == 12
  assert read({'model_max_length': int(1e30)}).most == int(1e30)


def test_words_that_nobody_knows_are_told_and_others_are_not():
  said = {'split_on_dashes': True, 'padding_side': 'left', 'legacy': False}
  assert read(said).unread == (f'split_on_dashes ({CONFIG})',)


AGREE = [
  ({'do_lower_case': True, 'strip_accents': None}, bert()),
  ({'do_lower_case': False, 'tokenizer_class': 'BertTokenizer'}, bert(False)),
  ({'tokenizer_class': 'BertTokenizerFast'}, bert()),
  ({'tokenizer_class': 'BertTokenizer'}, bert(strip_accents=True)),
  ({'add_prefix_space': False}, byte_level()),
  ({'add_bos_token': True, 'bos_token': '<eos>'}, begun()),
  ({'add_eos_token': False, 'eos_token': '[SEP]'}, begun()),
  ({'bos_token': {'content': '[CLS]', 'lstrip': False}}, None),
  (
    {'added_tokens_decoder': {'5': {'content': '<eos>', 'special': True}}},
    None,
  ),
  ({'added_tokens.json': {'<eos>': 5}}, None),
  ({'additional_special_tokens': ['<eos>']}, None),
  ({'tokenizer_class': 'SiglipTokenizer'}, small()),
  ({'pad_token': '<pad>'}, None),  # which no text becomes
]


@pytest.mark.parametrize(('said', 'made'), AGREE)
def test_files_that_agree_are_read(said, made):
  assert read(said, made).unread == ()


DIFFER = [
  ({'do_lower_case': False}, bert()),
  ({'do_lower_case': True}, bert(False)),
  ({'tokenizer_class': 'BertTokenizer'}, bert(False)),
  ({'tokenize_chinese_chars': False}, bert()),
  ({'strip_accents': False}, bert()),
  ({'tokenizer_class': 'BertTokenizer'}, bert(strip_accents=False)),
  ({'tokenizer_class': 'BertTokenizer'}, bert(handle_chinese_chars=False)),
  ({'add_prefix_space': True}, byte_level()),
  ({'add_bos_token': False, 'bos_token': '<eos>'}, begun()),
  ({'add_bos_token': True, 'bos_token': '[CLS]'}, begun()),
  ({'add_eos_token': True, 'eos_token': '[SEP]'}, begun()),
  ({'bos_token': '<s>'}, None),
  ({'mask_token': 3}, None),
  ({'added_tokens_decoder': {'60': {'content': '<new>'}}}, None),
  ({'added_tokens_decoder': {'4': {'content': '<eos>'}}}, None),
  ({'added_tokens_decoder': {'5': {'content': '<eos>', 'lstrip': True}}}, None),
  ({'added_tokens_decoder': {'x': {'content': '<eos>'}}}, None),
  ({'added_tokens_decoder': []}, None),
  ({'added_tokens.json': {'<new>': 60}}, None),
  ({'additional_special_tokens': ['<new>']}, None),
  ({'additional_special_tokens': '<eos>'}, None),
  ({'tokenizer_class': 'SiglipTokenizer'}, None),
  ({'truncation_side': 'middle'}, None),
  ({'model_max_length': 0}, None),
  ({'model_max_length': '512'}, None),
  ({'split_special_tokens': True}, None),
  ({'auto_map': {'AutoTokenizer': ['a.B', None]}}, None),
]


@pytest.mark.parametrize(('said', 'made'), DIFFER)
def test_files_that_disagree_are_refused(said, made):
  with pytest.raises(ValueError, match=CONFIG):
    read(said, made)


@pytest.mark.parametrize('side', ['right', 'left'])
def test_texts_are_cut_where_the_reference_cuts_them(side, tmp_path):
  transformers = pytest.importorskip('transformers', reason='parity')
  folders.tokenizer('bert').save(str(tmp_path / text.FILE))
  said = {
    'truncation_side': side,
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'pad_token': '[PAD]',
  }
  (tmp_path / CONFIG).write_text(json.dumps(said))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  expected = theirs([LONG], truncation=True, max_length=6)['input_ids']
  made = text.tokenizer(tmp_path)
  words = tokenizer_words.read(made, said, CONFIG)
  found = text.Encoder(made, 6, side=words.side)([LONG])['inputs']
  np.testing.assert_array_equal(found, expected)
