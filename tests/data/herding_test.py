"""Which rows of a class a client keeps."""

import numpy as np
import pytest

from fedms_jax.data import herding, tasks
from tests.data import tasks_test as world


def at(*degrees):
  """Unit vectors [n, 2]."""
  turn = np.deg2rad(degrees)
  return np.stack([np.cos(turn), np.sin(turn)], axis=1)


def test_the_row_nearest_to_the_mean_is_kept_first():
  # The mean is at 42 degrees, and 0 and 45 together nearer than 80 and 45.
  assert herding.order(at(0, 80, 45), 3).tolist() == [2, 0, 1]
  assert herding.order(at(0, 80, 45), 2).tolist() == [2, 0]
  assert herding.order(at(0), 5).tolist() == [0]


def test_the_next_row_mends_the_mean_of_those_kept():
  """And is not the next nearest."""
  x = at(-15, 20, 10, 15, 25, 45)
  found = herding.order(x, len(x))
  mean = x.mean(axis=0)
  nearest = np.argsort(np.square(x - mean).sum(axis=1), kind='stable')
  assert found[0] == nearest[0] and found.tolist() != nearest.tolist()
  for count in range(2, len(x)):
    gap = np.square(x[found[:count]].mean(axis=0) - mean).sum()
    for other in set(range(len(x))) - set(found[:count].tolist()):
      some = [*found[: count - 1], other]
      assert gap <= np.square(x[some].mean(axis=0) - mean).sum() + 1e-12
  assert sorted(found.tolist()) == list(range(len(x)))


def test_lengths_of_features_do_not_matter():
  x = np.random.default_rng(0).normal(size=(9, 3))
  lengths = np.geomspace(0.1, 10, 9)[:, None]
  found, scaled = (herding.order(f, 9).tolist() for f in (x, lengths * x))
  assert found == scaled


@pytest.mark.parametrize('kind', ['class', 'domain'])
def test_a_client_keeps_the_first_rows_of_each_of_its_classes(kind):
  memory = 8
  made, data = world.dealt(kind=kind, count=3, memory=memory, choice='herding')
  rng = np.random.default_rng(1)
  features = rng.normal(size=(len(data.train.rows), 4))
  data = herding.ranked(made, data, features, memory)
  of = dict(zip(data.train.rows.tolist(), features, strict=True))
  labels = data.table.columns['labels']
  group = labels if kind == 'class' else made.of
  before = None
  for step in (1, 2):
    train = tasks.seen(made, data, step).train
    kept = {(k, r) for k, r in world.pairs(train) if made.of[r] < step}
    for client in range(world.CLIENTS):
      mine = data.train.of(client)
      old = set(group[mine[made.of[mine] < step]].tolist())
      share = memory // max(len(old), 1)
      expected = set()
      for g in old:
        rows = mine[group[mine] == g]
        best = herding.order(np.stack([of[r] for r in rows.tolist()]), share)
        expected |= set(rows[best].tolist())
      assert {r for k, r in kept if k == client} == expected
    if before is not None:  # what is kept has always been kept
      assert {x for x in kept if made.of[x[1]] == 0} <= before
    before = kept
  assert before
