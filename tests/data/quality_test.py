"""What a division of rows cannot show, or shows too well, is said."""

import warnings

import numpy as np
import pytest

from fedms_jax.core.types import Federation, Partition, Table
from fedms_jax.data import quality
from fedms_jax.data.names import DataWarning


def federation(columns, train, test=(), public=(), unseen=(), pooled=None):
  def one(rows):
    return Partition(np.array([0, len(rows)]), np.array(rows, np.int32))

  test = list(test)
  pooled = [*test, *unseen] if pooled is None else pooled
  columns = {k: np.asarray(v) for k, v in columns.items()}
  columns['labels'] = np.arange(len(columns['inputs']))
  return Federation(
    Table(columns, ('a',)),
    train=one(train),
    validation=one([]),
    test=one(test),
    unseen=one(list(unseen)),
    pooled=np.array(pooled, np.int32),
    public=np.array(public, np.int32),
  )


def said(data, learned='whole'):
  with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter('always')
    quality.check(data, learned)
  assert all(w.category is DataWarning for w in found)
  return [str(w.message) for w in found]


ROWS = np.arange(6)[:, None, None] * np.ones((6, 2, 2), np.uint8)


def test_rows_that_differ_are_not_spoken_of():
  assert not said(federation({'inputs': ROWS}, [0, 1], [2], [3], [4]))


@pytest.mark.parametrize('where', ['test', 'unseen', 'pooled'])
@pytest.mark.parametrize('of', ['train', 'public'])
def test_the_share_of_tested_rows_that_are_trained_on_is_said(where, of):
  rows = ROWS.copy()
  rows[5] = rows[0]
  parts = {'train': [1], 'test': [2, 3], of: [0]} | {where: [4, 5]}
  data = federation({'inputs': rows}, **parts)
  tested = len({*data.test.rows, *data.unseen.rows, *data.pooled})
  (text,) = said(data)
  assert text.startswith(f'1 of {tested} test rows ({1 / tested:.2%}) have')


def test_a_caption_tells_equal_images_apart():
  texts = np.arange(6)[:, None]
  same = federation({'inputs': ROWS * 0}, [0], [1])
  assert said(same) and not said(
    federation({'inputs': ROWS * 0, 'texts': texts}, [0], [1])
  )


TOKENS = np.array([[7, -1], [8, -1], [5, 6]])


def test_rows_without_a_token_to_predict_are_refused():
  """The first token of a text is given, not predicted."""
  for parts in ({'train': [0, 1]}, {'train': [2], 'public': [0, 1]}):
    with pytest.raises(ValueError, match='none of 2 .* a token to predict'):
      quality.check(federation({'inputs': TOKENS}, **parts), 'next')
  assert not said(federation({'inputs': TOKENS}, [0, 2]), 'next')
  assert not said(federation({'inputs': TOKENS}, [0, 1]))


def test_completions_and_masks_are_what_is_predicted():
  targets = np.array([[-1, -1], [3, -1], [-1, 4]])
  columns = {'inputs': TOKENS, 'targets': targets}
  for learned, good in (('next', [2]), ('masked', [1, 2])):
    for row in range(3):
      data = federation(columns, [row])
      if row in good:
        assert not said(data, learned)
      else:
        with pytest.raises(ValueError, match='token to predict'):
          quality.check(data, learned)


def test_a_pooled_set_without_a_token_is_warned_of():
  data = federation({'inputs': TOKENS}, [2], pooled=[0, 1])
  (text,) = said(data, 'next')
  assert 'none of 2 pooled test rows' in text


def prompts(names, *templates):
  with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter('always')
    quality.check_prompts(
      names, [[t.format(n) for t in templates] for n in names]
    )
  return [str(w.message) for w in found]


def test_prompts_that_are_the_same_are_said():
  (text,) = prompts(['a', 'b', 'a'], 'a photo of {}.', '{}')
  assert "'a' and 'a'" in text and "'a photo of a.'" in text
  assert not prompts(['a', 'b'], 'photo', '{}')


def test_prompts_of_numbers_are_said():
  (text,) = prompts(['0', '-1'], 'a photo of a {}.')
  assert "'a photo of a 0.'" in text
  assert not prompts(['0', 'b'], '{}')
