"""A trained head and the classes of the data meet by name."""

import pytest

from fedms_jax.models import labels

HEAD = ('World', 'Sports', 'Business')


@pytest.mark.parametrize(
  ('outputs', 'names', 'expected'),
  [
    (HEAD, ('business', 'sports', 'WORLD'), [2, 1, 0]),
    (HEAD, HEAD, [0, 1, 2]),
    # Data without names has numbers: those of the head.
    (HEAD, ('0', '1', '2'), [0, 1, 2]),
    # No names, or none that say anything: as the data has them.
    ((), ('b', 'a'), [0, 1]),
    (('LABEL_0', 'LABEL_1'), ('b', 'a'), [0, 1]),
    # A head whose names are numbers has them in an order of its own.
    (('2', '0', '1'), ('0', '1', '2'), [1, 2, 0]),
  ],
)
def test_the_order_of_the_data(outputs, names, expected):
  assert labels.order(outputs, names, 'config.json') == expected


@pytest.mark.parametrize(
  'names',
  [
    ('World', 'Sports', 'Sci/Tech'),
    ('World', 'Sports'),
    (*HEAD, 'Sci/Tech'),
    ('1', '2', '3'),  # numbered from one: which is which is a guess
  ],
)
def test_names_that_do_not_fit_are_refused(names):
  with pytest.raises(ValueError, match='the head in here knows.*World'):
    labels.order(HEAD, names, 'here')


def test_two_outputs_of_one_name_are_refused():
  with pytest.raises(ValueError, match='knows the classes'):
    labels.order(('cat', 'Cat'), ('cat', 'Cat'), 'here')


def test_names_are_read_of_either_table():
  by_number = {'id2label': {'1': 'b', '0': 'a'}}
  by_name = {'label2id': {'b': 1, 'a': 0}}
  assert labels.named(by_number, '') == labels.named(by_name, '') == ('a', 'b')
  assert labels.named(by_number | by_name, '') == ('a', 'b')
  assert labels.named({}, '') == ()
  made = {'label2id': {'LABEL_0': 0, 'LABEL_1': 1}}
  assert labels.named(by_number | made, '') == ('a', 'b')


@pytest.mark.parametrize(
  'config',
  [
    {'id2label': {'0': 'a', '2': 'b'}},
    {'id2label': ['a', 'b']},
    {'id2label': {'0': 'a', '1': 'b'}, 'label2id': {'a': 1, 'b': 0}},
    {'label2id': {'a': 0, 'b': 0}},
  ],
)
def test_tables_that_say_no_order_are_refused(config):
  with pytest.raises(ValueError, match='2id|2label'):
    labels.named(config, 'config.json')
