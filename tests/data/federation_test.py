import numpy as np
import pytest

from fedms_jax.core.types import Partition, Table
from fedms_jax.data import archive, federation, lazy, partition, sources
from fedms_jax.data.sources import Source
from tests.data.lazy_test import Spy


def source(count=900, tested=100, shape=(4, 4, 1), **kwargs):
  rng = np.random.default_rng(0)
  columns = {
    'inputs': rng.integers(0, 256, (count + tested, *shape)).astype(np.uint8),
    'labels': rng.integers(0, 6, count + tested).astype(np.int32),
  }
  rows = np.arange(count + tested, dtype=np.int32)
  kwargs = {'groups': rows % 30} | kwargs
  table = Table(columns, ('ant', 'bee', 'cow', 'dog', 'eel', 'fox'))
  return Source(table, rows[:count], rows[count:], **kwargs)


def build(data=None, **kwargs):
  kwargs = {'num_clients': 12, 'unseen_clients': 3} | kwargs
  return federation.build(data or source(), **kwargs)


def held(built):
  return np.concatenate(
    [
      built.train.rows,
      built.validation.rows,
      built.test.rows,
      built.unseen.rows,
      built.public,
    ]
  )


def same(one, other):
  """Whether two divisions are equal, array by array."""
  flat = [
    [each[f] for f in range(2)] if isinstance(each, Partition) else [each]
    for pair in (one, other)
    for each in pair._replace(dealt='')[1:]
  ]
  flat = [array for part in flat for array in part]
  half = len(flat) // 2
  return all(
    np.array_equal(a, b) for a, b in zip(flat[:half], flat[half:], strict=True)
  )


@pytest.mark.parametrize('name', partition.NAMES)
def test_every_training_row_has_one_place(name):
  built = build(name=name)
  rows = held(built)
  assert len(np.unique(rows)) == len(rows)
  assert rows.max() < 900
  if name != 'natural':
    assert len(rows) == 900
  assert len(built.public) == 270
  for part in (built.train, built.validation, built.test):
    assert part.num_clients == 12
    assert part.sizes().min() >= 1
  assert built.unseen.num_clients == 3
  np.testing.assert_array_equal(built.pooled, np.arange(900, 1000))


def test_the_shares_of_a_client_are_as_asked():
  built = build(name='iid', validation=0.2, test=0.3)
  total = sum(
    part.sizes() for part in (built.train, built.validation, built.test)
  )
  assert (total == 42).all()
  assert (built.validation.sizes() == 8).all()
  assert (built.test.sizes() == 13).all()


@pytest.mark.parametrize('shares', [(0.8, 0.15), (0.15, 0.8), (0.01, 0.01)])
def test_three_rows_are_one_of_each(shares):
  data = source(count=36, tested=0)
  built = build(
    data, name='iid', num_clients=12, unseen_clients=0, public_fraction=0.0,
    min_rows=3, validation=shares[0], test=shares[1],
  )  # fmt: skip
  for part in (built.train, built.validation, built.test):
    assert part.sizes().tolist() == [1] * 12


def test_parts_of_a_client_come_from_the_same_client():
  built = build(name='natural')
  for k in range(12):
    rows = [
      part.of(k) for part in (built.train, built.validation, built.test)
    ]  # fmt: skip
    assert len(np.unique(np.concatenate(rows) % 30)) == 1


def test_without_a_test_split_the_pooled_rows_are_the_clients_test_rows():
  built = build(source(tested=0))
  rows = np.concatenate([built.test.rows, built.unseen.rows])
  np.testing.assert_array_equal(built.pooled, np.sort(rows))


def test_the_seed_decides_everything():
  one, again, other = build(seed=1), build(seed=1), build(seed=2)
  assert same(one, again)
  assert not same(one, other)
  assert not np.array_equal(one.public, other.public)


def test_public_classes_are_the_servers_alone():
  built = build(public_classes='bee, fox')
  labels = built.table.columns['labels']
  assert set(labels[built.public]) == {1, 5}
  assert len(built.public) == np.isin(labels[:900], [1, 5]).sum()
  private = np.concatenate([held(built), built.pooled])
  private = private[~np.isin(private, built.public)]
  assert set(labels[private]) == {0, 2, 3, 4}


@pytest.mark.parametrize('shift', federation.SHIFTS)
def test_a_shift_changes_the_public_images_alone(shift):
  data = source(shape=(4, 4, 3))
  before = data.table.columns['inputs'].copy()
  built = build(data, public_shift=shift)
  after = built.table.columns['inputs']
  others = np.setdiff1d(np.arange(1000), built.public)
  np.testing.assert_array_equal(after[others], before[others])
  assert (shift == 'none') == np.array_equal(after, before)
  np.testing.assert_array_equal(data.table.columns['inputs'], before)


def test_lazy_images_are_shifted_and_sorted_as_arrays_are():
  data = source()
  images = data.table.columns['inputs']
  spy = Spy(inputs=images.copy())
  columns = data.table.columns | {'inputs': lazy.Column(spy, 'inputs')}
  built = [
    federation.by_client(build(d, public_shift='invert'))
    for d in (
      data._replace(table=data.table._replace(columns=columns)),
      data,
    )
  ]
  assert same(*built) and not spy.seen
  rows = np.arange(0, 1000, 7)
  found = [lazy.take(b.table.columns, rows) for b in built]
  for name in ('inputs', 'labels'):
    np.testing.assert_array_equal(found[0][name], found[1][name])
  assert len(spy.seen) == len(rows)


def test_rows_are_dealt_as_the_source_asks_unless_one_says_how():
  asked = source()._replace(partition='classes')
  default = build(asked)
  named = build(source(), name='classes', classes_per_client=3)
  assert same(default, named)
  assert default.dealt == named.dealt == 'classes'
  other = build(asked, name='dirichlet')
  assert not same(default, other)
  assert same(other, build(source()))
  assert build(source()).dealt == 'dirichlet'


@pytest.mark.parametrize(
  ('asked', 'said', 'name'),
  [
    ('classes', {'alpha': 0.1}, 'dirichlet'),
    ('classes', {'sigma': 2.0}, 'quantity'),
    ('dirichlet', {'classes_per_client': 2}, 'classes'),
  ],
)
def test_what_says_nothing_of_the_sources_way_to_deal_is_refused(
  asked, said, name
):
  data = source()._replace(partition=asked)
  (key,) = said
  with pytest.raises(ValueError, match=f'`{key}`=.*partition.name={name}'):
    build(data, **said)
  assert build(data, name=name, **said).dealt == name


def test_digits_go_by_classes_and_other_data_by_dirichlet():
  assert sources.load('digits', max_rows=50).partition == 'classes'
  assert sources.load('synthetic', synthetic_rows=50).partition == 'dirichlet'


def test_a_partitioner_of_ones_own_has_no_name():
  def owner(labels, clients, rng):
    return rng.integers(clients, size=len(labels))

  assert build(name=owner).dealt == ''


def test_shifts_do_what_they_say():
  image = np.asarray([[1, 2], [3, 4]], np.uint8)[None, :, :, None]
  shifted = {
    name: shift(image)[0, :, :, 0].tolist()
    for name, shift in federation.SHIFTS.items()
  }
  assert shifted == {
    'none': [[1, 2], [3, 4]],
    'rotate': [[2, 4], [1, 3]],
    'transpose': [[1, 3], [2, 4]],
    'flip': [[2, 1], [4, 3]],
    'invert': [[254, 253], [252, 251]],
    'dim': [[64, 65], [65, 66]],
  }


def test_an_unnamed_shift_is_the_sources():
  default = build(source(public_shift='invert'))
  named = build(source(), public_shift='invert')
  plain = build(source(public_shift='invert'), public_shift='none')
  np.testing.assert_array_equal(
    default.table.columns['inputs'], named.table.columns['inputs']
  )
  np.testing.assert_array_equal(
    plain.table.columns['inputs'], source().table.columns['inputs']
  )


@pytest.mark.parametrize(
  ('kwargs', 'words'),
  [
    ({'public_classes': 'bea'}, ["Did you mean 'bee'?"]),
    ({'public_classes': 'ant,bee,cow,dog,eel,fox'}, ['takes every class']),
    ({'public_fraction': 1.0}, ['`public_fraction`=1.0']),
    ({'public_shift': 'rotat'}, ["Did you mean 'rotate'?"]),
    ({'data': source(shape=(4, 6, 1)), 'public_shift': 'rotate'}, ['4 x 6']),
    ({'data': source(shape=(7,)), 'public_shift': 'flip'}, ['for images']),
    ({'num_clients': 61, 'min_rows': 10}, ['640 rows', '630']),
    ({'name': 'iid', 'num_clients': 315, 'unseen_clients': 0, 'min_rows': 1},
     ['client 0 has 2 rows', '`min_rows`']),
  ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_with_a_reason(kwargs, words):
  with pytest.raises(ValueError) as error:
    build(**kwargs)
  for word in words:
    assert word in str(error.value)


PARTS = ('train', 'validation', 'test', 'unseen', 'public')


def with_rows(built, part, rows):
  """`built` with the first rows of a part replaced."""
  old = getattr(built, part)
  if isinstance(old, Partition):
    new = old._replace(rows=np.concatenate([rows, old.rows[len(rows) :]]))
  else:
    new = np.concatenate([rows, old[len(rows) :]])
  return built._replace(**{part: new})


def rows_of(built, part):
  found = getattr(built, part)
  return found.rows if isinstance(found, Partition) else found


@pytest.mark.parametrize('to', [*PARTS, 'pooled'])
@pytest.mark.parametrize('of', PARTS)
def test_a_row_in_two_places_is_a_leak(of, to):
  built = build()
  federation.check_disjoint(built)
  # Within one part, the last row comes again as the first.
  leaked = with_rows(built, to, rows_of(built, of)[-1:])
  if (to, of) in (('pooled', 'test'), ('pooled', 'unseen')):
    federation.check_disjoint(leaked)  # pooled rows may be clients' test rows
    return
  with pytest.raises(ValueError, match='leak') as error:
    federation.check_disjoint(leaked)
  assert of in str(error.value) and to in str(error.value)
  assert str(rows_of(built, of)[-1]) in str(error.value)


def test_rows_outside_the_table_are_refused():
  beyond = with_rows(build(), 'public', np.asarray([1000], np.int32))
  with pytest.raises(ValueError, match='the table has rows 0 to 999'):
    federation.check_disjoint(beyond)


def test_a_saved_partition_comes_back_the_same(tmp_path):
  path = str(tmp_path / 'p.npz')
  built = build(seed=3, save=path, public_shift='invert')
  loaded = build(seed=9, load=path, public_shift='invert', alpha=9.0)
  assert same(built, loaded)
  np.testing.assert_array_equal(
    built.table.columns['inputs'], loaded.table.columns['inputs']
  )
  assert [each.name for each in tmp_path.iterdir()] == ['p.npz']


def test_a_leak_in_a_file_is_found(tmp_path):
  path = str(tmp_path / 'p.npz')
  built = build()
  archive.save(path, with_rows(built, 'test', built.train.rows[:1]))
  with pytest.raises(ValueError, match='is in train and in test'):
    build(load=path)


def test_a_partition_of_other_clients_is_refused(tmp_path):
  path = str(tmp_path / 'p.npz')
  build(save=path)
  with pytest.raises(ValueError, match='`unseen_clients`=3'):
    build(load=path, unseen_clients=2)


def labels_of(built, *parts):
  rows = np.concatenate([rows_of(built, part) for part in parts])
  return set(built.table.columns['labels'][rows].tolist())


@pytest.mark.parametrize('tested', [0, 100])
@pytest.mark.parametrize('name', partition.NAMES)
def test_novel_classes_are_tested_and_nobody_has_them(name, tested):
  data = source(tested=tested)
  built = build(
    data, name=name, novel_classes='fox,bee', num_clients=8, min_rows=8
  )
  assert labels_of(built, *PARTS) == {0, 2, 3, 4}
  assert labels_of(built, 'pooled') == {0, 1, 2, 3, 4, 5}


def test_a_fraction_of_the_classes_is_their_last_part():
  half = build(novel_fraction=0.5)
  assert same(half, build(novel_classes='dog,eel,fox'))
  assert labels_of(half, *PARTS) == {0, 1, 2}
  assert labels_of(build(novel_fraction=0.01), *PARTS) == {0, 1, 2, 3, 4}


def test_without_a_test_split_novel_rows_are_tested_as_the_others_are():
  """Of each class the share that a client tests of its rows."""
  built = build(source(tested=0), novel_classes='bee,fox', test=0.3)
  labels = built.table.columns['labels']
  for novel in (1, 5):
    count = (labels == novel).sum()
    assert (labels[built.pooled] == novel).sum() == round(0.3 * count)


def test_public_classes_go_beside_novel_ones():
  built = build(public_classes='ant', novel_classes='fox', num_clients=9)
  assert labels_of(built, 'public') == {0}
  assert labels_of(built, 'train') == {1, 2, 3, 4}
  assert labels_of(built, 'pooled') == {1, 2, 3, 4, 5}


def without(label, where):
  """A source whose training or test split lacks a class."""
  data = source()
  rows = getattr(data, where)
  kept = rows[data.table.columns['labels'][rows] != label]
  return data._replace(**{where: kept})


@pytest.mark.parametrize(
  ('kwargs', 'words'),
  [
    ({'novel_classes': 'bea'}, ["Did you mean 'bee'?", '`novel_classes`']),
    ({'novel_classes': 'ant,bee,cow,dog,eel,fox'}, ['takes every class of 6']),
    ({'novel_fraction': 0.95}, ['`novel_fraction`=0.95 takes every']),
    ({'novel_fraction': 0.5, 'novel_classes': 'bee'}, ['Leave one of them']),
    ({'public_classes': 'fox', 'novel_classes': 'bee,fox'}, ['fox would be']),
    ({'data': without(1, 'test_rows'), 'novel_classes': 'bee'}, ['to test']),
  ],
)  # fmt: skip
def test_novel_classes_that_leave_nothing_are_refused(kwargs, words):
  with pytest.raises(ValueError) as error:
    build(**kwargs)
  for word in words:
    assert word in str(error.value)
