"""Tokens of texts, what of them is learned, and rows of several texts."""

import json

import numpy as np
import pytest
import tokenizers

from fedms_jax.core.types import Table
from fedms_jax.data import text
from fedms_jax.data.sources import Source
from tests import folders

END, HIDDEN = folders.VOCABULARY['<eos>'], folders.VOCABULARY['[MASK]']
TEXTS = ['ball goal', 'moon cloud rain sun wind', 'apple']


def ids(words):
  return [folders.VOCABULARY[word] for word in words.split()]


def encoder(kind='gpt2', max_tokens=16, **kwargs):
  return text.Encoder(folders.tokenizer(kind), max_tokens, **kwargs)


def real(row):
  return row[row >= 0].tolist()


def load(kind, tmp_path):
  folders.tokenizer(kind).save(str(tmp_path / 'tokenizer.json'))
  return text.tokenizer(tmp_path)


def test_rows_are_as_wide_as_the_longest_text(tmp_path):
  """Whatever padding the file asks for."""
  columns = text.Encoder(load('bert', tmp_path), 16)(TEXTS)
  assert list(columns) == ['inputs'] and columns['inputs'].shape == (3, 7)
  assert columns['inputs'].dtype == np.int32
  assert real(columns['inputs'][0]) == ids('[CLS] ball goal [SEP]')


def test_texts_are_cut_around_their_special_tokens(tmp_path):
  columns = text.Encoder(load('bert', tmp_path), 4)(TEXTS)
  assert real(columns['inputs'][1]) == ids('[CLS] moon cloud [SEP]')


def closed():
  """A tokenizer that puts the end token behind every text itself."""
  made = folders.tokenizer('gpt2')
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single='$A <eos>', special_tokens=[('<eos>', END)]
  )
  return made


@pytest.mark.parametrize('made', [folders.tokenizer('gpt2'), closed()])
@pytest.mark.parametrize('most', [2, 3, 4, 5, 6])
def test_the_end_token_is_only_where_a_text_ends(made, most):
  made.no_padding()
  rows = text.Encoder(made, most, objective='next', end=END)(TEXTS)['inputs']
  for row, words in zip(rows, map(ids, TEXTS), strict=True):
    whole = [*words, END]
    found = real(row)
    assert found == whole[: len(found)] and len(found) <= most
    # The tokenizer's own end token takes the room of one that is cut.
    least = min(len(whole), most)
    assert len(found) >= least - (made.post_processor is not None)


def test_a_text_that_is_cut_on_the_left_keeps_its_end():
  made = folders.tokenizer('gpt2')
  made.no_padding()
  make = text.Encoder(made, 3, objective='next', end=END, side='left')
  assert real(make(TEXTS)['inputs'][1]) == [*ids('sun wind'), END]


def test_completions_are_cut_at_their_end():
  made = folders.tokenizer('gpt2')
  made.no_padding()
  make = text.Encoder(made, 3, objective='next', end=END, side='left')
  columns = make(['ball', 'ball'], ['moon cloud rain sun', 'win'])
  assert real(columns['targets'][0]) == ids('moon cloud')
  assert real(columns['targets'][1]) == [*ids('win'), END]


def test_a_tokenizer_that_panics_is_a_message(tmp_path):
  found = json.loads(folders.tokenizer('gpt2').to_str())
  pattern = {'Regex': '(a+)+$'}
  found['pre_tokenizer'] = {
    'type': 'Split', 'pattern': pattern, 'behavior': 'Isolated', 'invert': False
  }  # fmt: skip
  (tmp_path / text.FILE).write_text(json.dumps(found))
  with pytest.raises(ValueError, match=r'tokenizer\.json'):
    text.Encoder(text.tokenizer(tmp_path), 9)(['a' * 40 + 'b'])


def test_completions_alone_are_learned(tmp_path):
  make = text.Encoder(load('gpt2', tmp_path), 16, objective='next', end=END)
  columns = make(TEXTS, ['win', 'star light', 'rice'])
  assert real(columns['inputs'][0]) == [*ids('ball goal win'), END]
  learned = columns['targets'] >= 0
  np.testing.assert_array_equal(
    columns['targets'][learned], columns['inputs'][learned]
  )
  assert real(columns['targets'][1]) == [*ids('star light'), END]
  assert not learned[:, 0].any()


def test_completions_that_never_fit_are_refused(tmp_path):
  make = text.Encoder(load('gpt2', tmp_path), 2, objective='next')
  with pytest.raises(ValueError, match='`max_tokens`'):
    make(['ball goal', 'moon cloud'], ['win', 'rain'])


def masks(fraction=0.3, seed=0, rows=200):
  texts = [' '.join(folders.WORDS[i % 20 : i % 20 + 4]) for i in range(rows)]
  make = encoder(
    'bert', objective='masked', mask=HIDDEN, fraction=fraction, seed=seed
  )
  make.tokenizer.no_padding()
  plain = make._replace(objective='whole')(texts)['inputs']
  return plain, make(texts)


def test_masked_tokens_can_be_learned_and_the_others_are_kept():
  plain, columns = masks()
  chosen = columns['targets'] >= 0
  np.testing.assert_array_equal(columns['targets'][chosen], plain[chosen])
  np.testing.assert_array_equal(columns['inputs'][~chosen], plain[~chosen])
  special = np.isin(plain, ids('[CLS] [SEP]')) | (plain < 0)
  assert not (chosen & special).any()
  assert chosen.any(axis=1).all()


def test_masks_have_the_shares_of_bert_and_follow_the_seed():
  plain, columns = masks(fraction=0.5, rows=2000)
  chosen = columns['targets'] >= 0
  share = chosen.sum() / (plain >= len(folders.SPECIAL)).sum()
  assert 0.5 < share < 0.6  # one at least in every text
  hidden = (columns['inputs'] == HIDDEN)[chosen].mean()
  kept = (columns['inputs'] == plain)[chosen].mean()
  assert 0.75 < hidden < 0.85 and 0.07 < kept < 0.15
  again, other = masks(fraction=0.5)[1], masks(fraction=0.5, seed=1)[1]
  np.testing.assert_array_equal(
    again['inputs'], masks(fraction=0.5)[1]['inputs']
  )
  assert (again['inputs'] != other['inputs']).any()


def source(lengths, labels, groups=None, test=0, targets=False):
  rows = [[10 * i + j for j in range(n)] for i, n in enumerate(lengths)]
  columns = {'inputs': text.padded(rows), 'labels': np.array(labels, np.int32)}
  if targets:
    columns['targets'] = text.padded([[-1] + row[1:] for row in rows])
  numbers = np.arange(len(rows), dtype=np.int32)
  cut = len(rows) - test
  groups = None if groups is None else np.array(groups, np.int32)
  table = Table(columns, ('a', 'b'))
  return Source(table, numbers[:cut], numbers[cut:], groups)


def test_packing_keeps_every_token_once_and_texts_whole():
  before = source([3, 4, 2, 5, 1, 3], [0, 1, 0, 0, 1, 0], targets=True)
  after = text.pack(before, 7)
  old, new = before.table.columns, after.table.columns
  assert sorted(real(new['inputs'])) == sorted(real(old['inputs']))
  assert new['inputs'].shape[1] <= 7
  for row in old['inputs']:
    whole = ' '.join(map(str, real(row)))
    assert any(whole in ' '.join(map(str, real(r))) for r in new['inputs'])
  learned = new['targets'] >= 0
  np.testing.assert_array_equal(new['targets'][learned], new['inputs'][learned])


def test_rows_hold_texts_of_one_label_group_and_split():
  labels, groups = [0, 0, 1, 1, 0, 0, 0, 1], [5, 6, 5, 5, 5, 5, -1, -1]
  before = source([1] * 8, labels, groups, test=2)
  after = text.pack(before, 4)
  tested = set(before.test_rows.tolist())
  for number, row in enumerate(after.table.columns['inputs']):
    texts = [token // 10 for token in real(row)]
    assert {labels[t] for t in texts} == {after.table.columns['labels'][number]}
    assert {groups[t] for t in texts} == {after.groups[number]}
    is_test = number in after.test_rows
    assert all((t in tested) == is_test for t in texts)
  rows = np.concatenate([after.train_rows, after.test_rows])
  assert rows.tolist() == list(range(len(after.table.columns['labels'])))
  assert len(after.test_rows) == 2 and len(rows) < 8


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(ValueError, match='tokenizer.json does not exist'):
    text.tokenizer(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match='is no tokenizer'):
    text.tokenizer(tmp_path)


def test_tokens_are_the_reference_s(tmp_path):
  transformers = pytest.importorskip('transformers', reason='parity')
  load('bert', tmp_path)
  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(tmp_path / 'tokenizer.json'), pad_token='[PAD]'
  )
  expected = theirs(TEXTS, truncation=True, max_length=5, padding=True)
  found = text.Encoder(text.tokenizer(tmp_path), 5)(TEXTS)['inputs']
  mask = np.array(expected['attention_mask'], bool)
  np.testing.assert_array_equal(found >= 0, mask)
  np.testing.assert_array_equal(
    np.where(mask, found, 0), np.where(mask, expected['input_ids'], 0)
  )
