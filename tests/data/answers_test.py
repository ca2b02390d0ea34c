"""What is learned beside classes: read, scaled, stratified, or refused."""

import json

import numpy as np
import pytest

from fedms_jax.core.types import Table
from fedms_jax.data import answers, classes, formats, partition, sources
from fedms_jax.data.sources import Source

IMAGE = np.zeros((4, 4), int).tolist()


def load(folder, rows, kind, **more):
  """A source of JSON lines with an image and an answer each."""
  folder.mkdir(exist_ok=True)
  lines = [json.dumps({'image': IMAGE, 'label': x}) for x in rows]
  (folder / 'train.jsonl').write_text('\n'.join(lines) + '\n')
  return sources.load(str(folder / 'train.jsonl'), answer=kind, **more)


def test_numbers_are_in_units_of_their_spread(tmp_path):
  rows = [1.5, -2.0, 7.25, 3.0, 0.0, 11.0]
  table = load(tmp_path, rows, 'values').table
  outputs, values = table.outputs, table.columns['values']
  assert outputs.kind == 'values' and len(table.output_names) == 1
  np.testing.assert_allclose(values.mean(), 0, atol=1e-6)
  np.testing.assert_allclose(values.std(), 1, rtol=1e-6)
  back = outputs.center[0] + outputs.spread[0] * values[:, 0]
  np.testing.assert_allclose(back, rows, rtol=1e-6, atol=1e-6)
  # Strata in the order of the numbers, for what deals rows by labels.
  order = np.argsort(rows)
  assert (np.diff(table.columns['labels'][order]) >= 0).all()
  assert table.label_names[0].startswith('under')
  dealt = partition.deal(
    'dirichlet', table.columns['labels'], np.arange(6), num_clients=2, seed=0,
    min_rows=2,
  )  # fmt: skip
  assert sorted(dealt.rows.tolist()) == list(range(6))


def test_test_rows_do_not_move_the_unit():
  numbers = np.array([[0.0], [2.0], [4.0], [1000.0]])
  outputs = answers.values(numbers, 3).outputs
  assert outputs.center == (2.0,)
  assert outputs.spread[0] == pytest.approx(np.std([0, 2, 4]))


def test_several_numbers_a_row(tmp_path):
  table = load(tmp_path, [[1.0, 5], [2.0, 7], [4.0, 9]], 'values').table
  assert table.columns['values'].shape == (3, 2)
  assert len(table.output_names) == 2


def test_tags_are_of_a_row_as_they_are_listed(tmp_path):
  rows = [['cat', 'dog'], ['dog'], [], ['dog', 'cow'], ['cat', 'dog']]
  table = load(tmp_path, rows, 'tags').table
  assert table.output_names == ('cat', 'cow', 'dog')
  wanted = [[tag in row for tag in table.output_names] for row in rows]
  np.testing.assert_array_equal(table.columns['tags'], wanted)
  # A stratum is the rarest tag of a row.
  names = [table.label_names[i] for i in table.columns['labels']]
  assert names == ['cat', 'dog', answers.NONE, 'cow', 'cat']


def test_levels_come_in_the_order_of_their_numbers(tmp_path):
  table = load(tmp_path, ['10', '9', '-1', '9'], 'levels').table
  assert table.label_names == ('-1', '9', '10')
  assert table.columns['labels'].tolist() == [2, 1, 0, 1]
  assert table.output_names == ('over -1', 'over 9')


@pytest.mark.parametrize(
  ('rows', 'kind', 'words'),
  [
    (['low', 'high'], 'levels', 'in which order'),
    (['3', '3'], 'levels', 'one level'),
    (['1', 'x'], 'values', 'a finite number'),
    ([2.0, 2.0, 2.0], 'values', 'the same value 2'),
    ([1.0, None], 'values', 'row 1 .* None'),
    ([[1.0, 2.0], [1.0]], 'values', '1 to 2 numbers'),
    (['cat;dog', 'dog'], 'tags', 'a list of tags'),
    ([[], []], 'tags', 'no training row has a tag'),
  ],
)
def test_what_is_no_such_answer_is_refused(rows, kind, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    load(tmp_path, rows, kind)


def test_arrays_hold_numbers_and_tags(tmp_path):
  images = np.zeros((4, 4, 4), np.uint8)
  tags = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
  np.savez(tmp_path / 'tags.npz', images=images, labels=tags)
  table = sources.load(str(tmp_path / 'tags.npz'), answer='tags').table
  np.testing.assert_array_equal(table.columns['tags'], tags)
  y = np.array([0.5, 1.5, -1.0, 3.0])
  np.savez(tmp_path / 'y.npz', images=images, labels=y)
  table = sources.load(str(tmp_path / 'y.npz'), answer='values').table
  back = table.outputs.center[0] + (
    table.outputs.spread[0] * table.columns['values'][:, 0]
  )
  np.testing.assert_allclose(back, y, rtol=1e-6)
  np.savez(tmp_path / 'bad.npz', images=images, labels=2 * tags)
  with pytest.raises(ValueError, match='0 or 1 for each tag'):
    formats.read(tmp_path / 'bad.npz')


def test_embedded_labels_are_levels_or_numbers_and_no_tags():
  table = sources.load('digits', answer='levels', max_rows=50).table
  assert len(table.output_names) == 9
  table = sources.load('digits', answer='values', max_rows=50).table
  assert table.columns['values'].shape == (50, 1)
  with pytest.raises(ValueError, match='no lists of tags'):
    sources.load('digits', answer='tags')


def test_strata_are_no_classes_that_could_be_held_out():
  found = answers.values(np.arange(8.0)[:, None], 8)
  table = Table(found.columns, found.names, found.outputs)
  source = Source(table, np.arange(8), np.arange(0))
  with pytest.raises(ValueError, match='no classes of which'):
    classes.novel(source, '', 0.5)
  with pytest.raises(ValueError, match='no classes of which'):
    classes.divided(source, 0.0, table.label_names[0], np.zeros(0, int), 0)
