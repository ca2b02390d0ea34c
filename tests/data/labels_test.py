"""Labels are matched by name, and what cannot be right is said."""

import datasets
import pytest

from fedms_jax.data import labels


def split(values, names=None):
  types = names and datasets.Features(
    {'label': datasets.ClassLabel(names=list(names))}
  )
  return datasets.Dataset.from_dict({'label': list(values)}, features=types)


def read(train, test, **kwargs):
  return labels.read({'train': train, 'test': test}, 'label', **kwargs)


def refused(train, test, **kwargs):
  with pytest.raises(ValueError) as error:
    read(train, test, **kwargs)
  return str(error.value)


def test_classes_are_matched_by_name_whatever_their_order():
  train, test = split([0, 1, 2], 'abc'), split([0, 1, 2], 'cba')
  numbers, names = read(train, test)
  assert names == ('a', 'b', 'c')
  assert numbers.tolist() == [0, 1, 2, 2, 1, 0]


def test_numbers_match_names_that_are_the_same_numbers():
  numbers, names = read(split([0, 1], '90'), split([9, 0, 0]))
  assert names == ('9', '0') and numbers.tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize('test', [[0, 1], [1], [0, -1]])
def test_names_and_numbers_that_do_not_match_are_refused(test):
  text = refused(split([0, 1], ('cat', 'dog')), split(test))
  assert "'cat'" in text and '`test_split`' in text
  assert "'cat'" in refused(split(test), split(['cat', 'dog']))


@pytest.mark.parametrize('test', [[-1, -1], [0, -1], ['-1', '-1']])
def test_minus_one_in_the_test_split_alone_is_no_class(test):
  train = [0, 1] if isinstance(test[0], int) else ['0', '1']
  text = refused(split(train), split(test))
  assert f'-1 in {test.count(test[-1])} of 2 rows' in text
  assert '`test_split`' in text


def test_minus_one_is_a_class_where_it_is_trained_on():
  numbers, names = read(split([-1, 1]), split([1, -1, -1]))
  assert names == ('-1', '1') and numbers.tolist() == [0, 1, 1, 0, 0]


def test_classes_that_are_only_tested_are_named():
  with pytest.warns(UserWarning, match="2 of 3 rows of the test.*'bee', 'cow'"):
    read(split(['ant', 'fly']), split(['bee', 'ant', 'cow']))


def test_of_many_names_some_are_shown():
  tested = [f'{i:02}' for i in range(30)]
  with pytest.warns(UserWarning, match="'10' and 19 more"):
    read(split(['00', 'x']), split(tested))


def test_splits_without_a_common_class_are_refused():
  text = refused(split(['a', 'b']), split(['A', 'B']))
  assert "'a', 'b'" in text and "'A', 'B'" in text


def test_data_of_one_class_is_warned_of():
  with pytest.warns(UserWarning, match="all 3 rows .* 'label', 'b'"):
    read(split([1, 1, 1], 'abc'), split([1], 'abc'))


@pytest.mark.parametrize('word', ['NA', 'nan', 'None', '#N/A'])
def test_a_word_for_no_value_among_numbers_is_no_class(word):
  text = refused(split(['0', word, '1.0']), split(['0']))
  assert f"row 1 of the train split has no 'label' (it says {word!r}" in text


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('names', [['NA', 'US'], ['null', 'nan'], ['x', '7']])
def test_a_class_among_names_may_be_called_so(names):
  _, found = read(split(names), split(names))
  assert found == tuple(sorted(names))


@pytest.mark.filterwarnings('error')
def test_labels_that_are_not_learned_may_be_anything():
  numbers, names = read(split([0, 0]), split([-1]), learned=False)
  assert names == ('-1', '0') and numbers.tolist() == [1, 1, 0]
