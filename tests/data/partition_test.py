import numpy as np
import pytest

from fedms_jax.data import partition

LABELS = np.random.default_rng(0).integers(0, 10, 12_000).astype(np.int32)
# Half of the table is someone else's.
ROWS = np.random.default_rng(1).permutation(12_000)[:6000].astype(np.int32)
GROUPS = np.random.default_rng(2).integers(0, 80, 12_000).astype(np.int32)


def deal(name, num_clients=40, rows=ROWS, labels=LABELS, seed=0, **kwargs):
  kwargs = {'groups': GROUPS, 'min_rows': 5} | kwargs
  return partition.deal(
    name, labels, rows, num_clients=num_clients, seed=seed, **kwargs
  )


def counts(dealt, labels=LABELS):
  """Rows of each class per client, [N, C]."""
  return np.stack(
    [
      np.bincount(labels[dealt.of(k)], minlength=labels.max() + 1)
      for k in range(dealt.num_clients)
    ]
  )


@pytest.mark.parametrize('name', partition.NAMES)
def test_each_row_is_dealt_once_and_min_rows_is_kept(name):
  dealt = deal(name)
  assert dealt.num_clients == 40
  assert dealt.sizes().sum() == len(dealt.rows)
  assert dealt.sizes().min() >= 5
  assert len(np.unique(dealt.rows)) == len(dealt.rows)
  assert np.isin(dealt.rows, ROWS).all()
  if name != 'natural':
    np.testing.assert_array_equal(np.sort(dealt.rows), np.sort(ROWS))
  assert dealt.rows.dtype == np.int32
  assert dealt.offsets.dtype == np.int64


@pytest.mark.parametrize('name', partition.NAMES)
def test_the_seed_decides_everything(name):
  one, same, other = deal(name), deal(name), deal(name, seed=1)
  np.testing.assert_array_equal(one.rows, same.rows)
  np.testing.assert_array_equal(one.offsets, same.offsets)
  assert not np.array_equal(one.rows[:50], other.rows[:50])


@pytest.mark.parametrize('name', partition.NAMES)
def test_500_clients_of_strong_skew_get_their_rows_or_a_reason(name):
  try:
    dealt = deal(name, num_clients=500, alpha=0.1, sigma=3.0, min_rows=10)
  except ValueError as error:
    assert name in ('natural', 'classes')
    assert '`' in str(error)
  else:
    assert dealt.num_clients == 500
    assert dealt.sizes().min() >= 10
    assert dealt.sizes().sum() == len(ROWS)


def test_min_rows_can_take_every_row():
  """The repair still ends when each client must have just what it needs."""
  for name in ('dirichlet', 'quantity'):
    sizes = deal(name, num_clients=500, alpha=0.1, min_rows=12).sizes()
    assert (sizes == 12).all()


def test_tiny_alpha_does_not_underflow():
  held = counts(deal('dirichlet', num_clients=10, alpha=1e-6, min_rows=1))
  # Each class goes to one client whole, but for the rows of the repair.
  assert (held.max(0) >= held.sum(0) - 9).all()


def test_alpha_orders_the_label_entropy():
  entropies = [
    partition.describe(deal('dirichlet', alpha=alpha), LABELS, 10)[
      'label_entropy'
    ]
    for alpha in (0.03, 0.3, 3.0, 300.0)
  ]
  assert entropies == sorted(entropies)
  assert entropies[-1] > 0.95 * np.log(10)


def test_dirichlet_class_shares_have_the_dirichlet_variance():
  """Var of a share of Dirichlet(alpha) over N clients: (N - 1) / (N^2 (N
  alpha + 1)); 400 shares of a class with plenty of rows."""
  labels = np.repeat(np.arange(20), 2000)
  rows = np.arange(len(labels))
  held = counts(deal('dirichlet', 20, rows, labels, alpha=0.5), labels)
  variance = (19 / 400) / (20 * 0.5 + 1)
  assert np.var(held / 2000) == pytest.approx(variance, rel=0.35)
  # Classes are drawn apart: their shares of a client do not go together.
  assert np.var(held.sum(1) / 2000) < 3 * 20 * variance


def test_repair_moves_no_more_than_is_lacking():
  skewed = deal('dirichlet', num_clients=100, alpha=0.1, min_rows=1)
  repaired = deal('dirichlet', num_clients=100, alpha=0.1, min_rows=20)
  lack = np.maximum(20 - skewed.sizes(), 0).sum()
  moved = np.abs(repaired.sizes() - skewed.sizes()).sum() / 2
  assert lack > 0
  # Those who lacked even the 1 row of the first are counted twice.
  assert moved <= lack <= moved + 100


@pytest.mark.parametrize('k', [1, 2, 3, 10])
def test_classes_gives_each_client_exactly_k_and_all_classes_a_holder(k):
  held = counts(deal('classes', classes_per_client=k, num_clients=41)) > 0
  assert (held.sum(1) == k).all()
  holders = held.sum(0)
  assert holders.max() - holders.min() <= k
  assert holders.min() > 0


def test_classes_counts_only_the_classes_of_the_rows():
  rows = np.flatnonzero(LABELS < 4)
  held = counts(deal('classes', rows=rows, classes_per_client=4)) > 0
  assert held[:, :4].all() and not held[:, 4:].any()


def test_iid_sizes_differ_by_one_at_most():
  sizes = deal('iid', num_clients=37).sizes()
  assert sizes.max() - sizes.min() <= 1


def test_quantity_sizes_are_lognormal():
  sizes = deal('quantity', num_clients=200, sigma=0.5, min_rows=1).sizes()
  assert np.std(np.log(sizes)) == pytest.approx(0.5, rel=0.2)
  equal = deal('quantity', sigma=0.0).sizes()
  assert equal.max() - equal.min() <= 1


def test_natural_clients_are_whole_groups():
  dealt = deal('natural')
  groups = [np.unique(GROUPS[dealt.of(k)]) for k in range(40)]
  assert all(len(group) == 1 for group in groups)
  assert len({int(group[0]) for group in groups}) == 40
  for k in range(40):
    assert len(dealt.of(k)) == (GROUPS[ROWS] == groups[k][0]).sum()


def test_natural_clients_are_groups_with_enough_rows():
  sizes = np.bincount(GROUPS[ROWS])
  enough = int(np.median(sizes))
  dealt = deal('natural', num_clients=30, min_rows=enough)
  assert dealt.sizes().min() >= enough > sizes.min()


def test_rows_of_a_client_are_in_random_order():
  """So that any span of them is a random choice."""
  dealt = deal('dirichlet', num_clients=20, alpha=1.0)
  held = counts(dealt)
  expected = held.sum(1) - (held**2).sum(1) / held.sum(1)
  changes = [(np.diff(LABELS[dealt.of(k)]) != 0).sum() for k in range(20)]
  assert sum(changes) == pytest.approx(expected.sum(), rel=0.05)


@pytest.mark.parametrize(
  ('kwargs', 'words'),
  [
    ({'name': 'dirichle'}, ["Did you mean 'dirichlet'?"]),
    ({'alpha': 0.0}, ['`alpha`=0.0', 'above 0']),
    ({'alpha': -1.0}, ['`alpha`=-1.0']),
    ({'alpha': float('inf')}, ['finite']),
    ({'num_clients': 0}, ['0 clients']),
    (
      {'num_clients': 500, 'min_rows': 13},
      ['6500 rows', '6000', '`num_clients`'],
    ),
    (
      {'name': 'classes', 'classes_per_client': 11},
      ['`classes_per_client`=11', '1 to 10'],
    ),
    (
      {'name': 'classes', 'num_clients': 3},
      ['3 clients of 3 classes', '10 classes', 'partition.name=dirichlet'],
    ),
    ({'name': 'natural', 'groups': None}, ['`group_column`']),
    (
      {'name': 'natural', 'num_clients': 81},
      ['80 of 80 groups', '`num_clients`'],
    ),
  ],
)
def test_what_cannot_be_dealt_is_refused_with_a_reason(kwargs, words):
  with pytest.raises(ValueError) as error:
    deal(**{'name': 'dirichlet'} | kwargs)
  for word in words:
    assert word in str(error.value)


def test_classes_with_too_few_rows_are_refused():
  labels = np.where(np.arange(1000) < 6, 0, 1)
  with pytest.raises(ValueError, match='client . would get 3 rows'):
    deal('classes', 4, np.arange(1000), labels, classes_per_client=1)


def test_statistics_of_a_partition_known_by_hand():
  labels = np.asarray([0, 0, 1, 1, 2, 2])
  dealt = partition.Partition(
    np.asarray([0, 2, 6]), np.asarray([0, 1, 2, 3, 4, 5], np.int32)
  )
  found = partition.describe(dealt, labels, 3)
  assert found == pytest.approx(
    {
      'clients': 2,
      'rows': 6,
      'rows_min': 2,
      'rows_median': 3,
      'rows_max': 4,
      'label_entropy': np.log(2) / 2,
      'classes': 1.5,
    }
  )
  assert partition.sentence(found) == (
    '2 clients, 6 rows (2 to 4 each, median 3), label entropy 0.35 nats, '
    '1.5 effective classes a client'
  )


def test_no_clients_have_statistics_too():
  empty = partition.Partition(np.zeros(1, np.int64), np.zeros(0, np.int32))
  assert partition.describe(empty, LABELS, 10)['rows'] == 0
