"""Which rows clients have in a sequence of tasks."""

import dataclasses

import numpy as np
import pytest

from fedms_jax.core.types import Federation, Table
from fedms_jax.data import tasks
from fedms_jax.data.tasks import ALL, Scenario
from tests import world

ROWS, CLASSES, CLIENTS = 240, 6, 4


def federation(labels=None):
  rng = np.random.default_rng(0)
  rows = np.arange(ROWS).reshape(CLIENTS + 1, -1)
  train, held = rows[:CLIENTS, :40], rows[:CLIENTS, 40:]
  images = rng.integers(0, 256, (ROWS, 4, 4, 1)).astype(np.uint8)
  labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
  table = Table({'inputs': images, 'labels': labels}, tuple('abcdef'))
  held = world.partition(*held)
  return Federation(
    table, world.partition(*train), held, held, world.partition(rows[-1]),
    held.rows, rows[-1],
  )  # fmt: skip


def dealt(**kwargs):
  """(tasks, federation) of a scenario."""
  data = federation()
  made, table = tasks.made(Scenario(**kwargs), data.table)
  return made, data._replace(table=table)


def pairs(partition):
  owners = np.repeat(np.arange(partition.num_clients), partition.sizes())
  return set(zip(owners.tolist(), partition.rows.tolist(), strict=True))


def test_classes_are_dealt_to_tasks_each_once():
  made, _ = dealt(kind='class', count=4, seed=3)
  assert (made.classes.sum(0) == 1).all()
  labels = federation().table.columns['labels']
  assert made.classes[made.of, labels].all()
  other, _ = dealt(kind='class', count=4, seed=4)
  assert (made.classes != other.classes).any()


@pytest.mark.parametrize('kind', ['class', 'domain', 'label'])
def test_one_task_is_the_federation_itself(kind):
  made, data = dealt(kind=kind, count=1)
  found, plain = tasks.seen(made, data, 0), federation()
  for name in ('train', 'validation'):
    world.same(getattr(found, name), getattr(plain, name))
  assert found.train.since is None
  for name, column in plain.table.columns.items():
    np.testing.assert_array_equal(data.table.columns[name], column)


@pytest.mark.parametrize('order', ['same', 'per_client', 'staggered'])
def test_tasks_share_the_rows_and_joint_has_all_of_the_past(order):
  made, data = dealt(kind='class', count=3, order=order)
  joint = made._replace(scenario=dataclasses.replace(made.scenario, memory=ALL))
  plenty = made._replace(
    scenario=dataclasses.replace(made.scenario, memory=10**6)
  )
  world.same(
    tasks.seen(plenty, data, 2).train, tasks.seen(joint, data, 2).train
  )
  steps = [tasks.seen(made, data, s).train for s in range(3)]
  so_far = set()
  for step, train in enumerate(steps):
    so_far |= pairs(train)
    assert pairs(tasks.seen(joint, data, step).train) == so_far
  whole = pairs(data.train)
  if order == 'staggered':  # half of the clients never come to the last task
    late = {(k, r) for k, r in whole if k % 2 and made.of[r] == 2}
    assert late and so_far == whole - late
  else:
    assert so_far == whole and sum(map(len, map(pairs, steps))) == len(whole)


def test_each_client_has_an_order_of_its_own():
  found = tasks.orders(Scenario('class', 5, order='per_client', seed=1), 9)
  assert (np.sort(found, axis=1) == np.arange(5)).all()
  assert len({tuple(row) for row in found}) > 1
  again = tasks.orders(Scenario('class', 2, repeats=2), 3)
  assert again.tolist() == [[0, 1, 0, 1]] * 3


def test_rows_arrive_until_all_of_the_task_is_there():
  made, data = dealt(kind='class', count=2, arrival=4, seed=5)
  train = tasks.seen(made, data, 1).train
  plain = made._replace(scenario=dataclasses.replace(made.scenario, arrival=0))
  sizes = [len(train.at(r).rows) for r in range(6)]
  assert sizes == sorted(sizes) and sizes[0] < sizes[3]
  assert pairs(train.at(3)) == pairs(tasks.seen(plain, data, 1).train)
  assert pairs(train.at(5)) == pairs(train.at(3))
  # It is of the row, and of nothing else.
  world.same(train, tasks.seen(made, data, 1).train)


def test_a_window_lets_rows_go():
  made, data = dealt(kind='class', count=2, arrival=4, window=1)
  train = tasks.seen(made, data, 0).train
  parts = [pairs(train.at(r)) for r in range(5)]
  assert all(parts[:4]) and not parts[4]
  assert sum(map(len, parts)) == len(set.union(*parts)) == len(pairs(train))


def test_a_task_takes_the_place_of_another_row_by_row():
  made, data = dealt(kind='class', count=2, blend=4)
  train = tasks.seen(made, data, 1).train
  share = []
  for number in range(6):
    here = made.of[train.at(number).rows]
    share.append((here == 1).mean())
  assert share[0] == 0 and share[4] == share[5] == 1
  assert share == sorted(share) and 0 < share[2] < 1


@pytest.mark.parametrize(('kind', 'groups'), [('class', 2), ('domain', 1)])
def test_what_is_kept_has_always_been_kept(kind, groups):
  memory = 8
  made, data = dealt(kind=kind, count=3, memory=memory)
  labels = data.table.columns['labels']
  before = None
  for step in (1, 2):
    train = tasks.seen(made, data, step).train
    kept = {(k, r) for k, r in pairs(train) if made.of[r] < step}
    group = labels if kind == 'class' else made.of
    for client in range(CLIENTS):
      mine = [group[r] for k, r in kept if k == client]
      share = memory // (groups * step)
      have = [group[r] for r in data.train.of(client) if made.of[r] < step]
      # As many of each as fit, and no more than there are.
      for g in set(have):
        if len(set(have)) == groups * step:
          assert mine.count(g) == min(share, have.count(g))
      assert 0 < len(mine) <= memory
    if before is not None:
      assert {x for x in kept if made.of[x[1]] == 0} <= before
    before = kept


def test_domains_look_other_and_say_the_same():
  made, data = dealt(kind='domain', count=4)
  plain = federation().table.columns
  images = data.table.columns['inputs']
  expected = {
    0: lambda x: x,
    1: lambda x: 255 - x,
    2: lambda x: np.rot90(x, axes=(1, 2)),
    3: lambda x: 255 - np.rot90(x, axes=(1, 2)),
  }
  for task, look in expected.items():
    rows = made.of == task
    np.testing.assert_array_equal(images[rows], look(plain['inputs'][rows]))
  np.testing.assert_array_equal(data.table.columns['labels'], plain['labels'])


def test_what_the_server_has_is_of_the_first_domain():
  data = federation()
  made, table = tasks.made(Scenario('domain', 3), data.table, data.public)
  assert not made.of[data.public].any()
  assert set(made.of[data.train.rows]) == {0, 1, 2}
  for name in ('inputs', 'labels'):
    np.testing.assert_array_equal(
      table.columns[name][data.public], data.table.columns[name][data.public]
    )


def test_domains_of_a_column_become_tasks_in_their_order():
  data = federation()
  domains = (np.arange(ROWS) * 7 % 5).astype(np.int32)
  table = data.table._replace(columns=data.table.columns | {'domain': domains})
  made, found = tasks.made(Scenario('column', 3), table)
  np.testing.assert_array_equal(made.of, np.array([0, 0, 1, 1, 2])[domains])
  assert made.classes.all() and 'domain' not in found.columns
  np.testing.assert_array_equal(found.columns['task'], made.of)
  with pytest.raises(ValueError, match='at most 5'):
    tasks.made(Scenario('column', 6), table)
  with pytest.raises(ValueError, match='this source has none'):
    tasks.made(Scenario('column', 2), data.table)


def test_two_labels_change_places_in_later_tasks():
  made, data = dealt(kind='label', count=2)
  old, new = federation().table.columns['labels'], data.table.columns['labels']
  changed = old != new
  assert changed.any() and not changed[made.of == 0].any()
  swapped = {tuple(p) for p in zip(old[changed], new[changed], strict=True)}
  assert len(swapped) == 2
  (a, b), (c, d) = swapped
  assert (a, b) == (d, c)


@pytest.mark.parametrize(
  ('kind', 'count', 'word'), [('class', 7, 'count'), ('domain', 9, 'domains')]
)
def test_more_tasks_than_there_are_is_refused(kind, count, word):
  with pytest.raises(ValueError, match=word):
    dealt(kind=kind, count=count)
