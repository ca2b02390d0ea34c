"""Poisoned rows: whose, which, when, and what they are."""

import numpy as np
import pytest

from fedms_jax.data import cohorts, poison
from tests import world

FLIP = poison.Poison('label_flip')
PATCH = poison.Poison('backdoor', share=0.5, target=2, size=3)


def made(how=PATCH, clients=(1, 4), seed=0):
  return poison.poisoned(world.federation(), how, np.array(clients), seed)


def test_who_is_malicious_follows_from_the_seed_and_grows_with_the_share():
  few, more = (poison.malicious(3, 40, f) for f in (0.1, 0.5))
  assert len(few) == 4 and len(more) == 20 and set(few) <= set(more)
  np.testing.assert_array_equal(few, poison.malicious(3, 40, 0.1))
  assert not np.array_equal(more, poison.malicious(4, 40, 0.5))
  assert len(poison.malicious(3, 40, 0.0)) == 0
  assert len(poison.malicious(3, 10, 0.3)) == 3  # 0.3 * 10 is 2.99...
  np.testing.assert_array_equal(poison.malicious(3, 7, 1.0), np.arange(7))


@pytest.mark.parametrize('how', [FLIP, PATCH, FLIP._replace(flip='next')])
def test_rows_are_added_and_none_is_changed(how):
  data, found = world.federation(), made(how)
  count = len(data.table.columns['labels'])
  for name, column in data.table.columns.items():
    whole = found.data.table.columns[name]
    np.testing.assert_array_equal(whole[:count], column)
    assert whole.dtype == column.dtype
  np.testing.assert_array_equal(found.data.train.rows, data.train.rows)
  rows = np.flatnonzero(found.copy >= 0)
  labels = found.data.table.columns['labels']
  new, old = labels[found.copy[rows]], labels[rows]
  assert (new != old).all()
  want = {'label_flip': 3 - old, 'backdoor': np.full_like(old, 2)}[how.kind]
  want = (old + 1) % 4 if how.flip == 'next' else want
  np.testing.assert_array_equal(new, want)
  images = found.data.table.columns['inputs']
  before, after = images[rows], images[found.copy[rows]].copy()
  if how.kind == 'backdoor':
    assert (after[:, -3:, -3:] == 255).all()
    after[:, -3:, -3:] = before[:, -3:, -3:]
  np.testing.assert_array_equal(after, before)


def test_malicious_clients_alone_train_on_a_share_of_poisoned_rows():
  data, found = world.federation(), made()
  seen = poison.view(found.data, found.copy)
  count = len(data.table.columns['labels'])
  labels = data.table.columns['labels']
  for k in range(data.train.num_clients):
    mine, bad = data.train.of(k), seen.train.of(k) >= count
    could = (labels[mine] != 2).sum()
    assert bad.sum() == (max(1, round(could / 2)) if k in (1, 4) else 0)
    np.testing.assert_array_equal(seen.train.of(k)[~bad], mine[~bad])
    np.testing.assert_array_equal(seen.train.of(k)[bad], found.copy[mine[bad]])
  other = made(seed=1)
  a, b = (np.flatnonzero(x.copy[data.train.rows] >= 0) for x in (found, other))
  assert not np.array_equal(a, b)  # which rows is drawn


def test_a_few_rows_of_everybody_are_an_attack_too():
  found = made(PATCH._replace(share=0.1), range(6))
  seen = poison.view(found.data, found.copy).train
  count = len(world.federation().table.columns['labels'])
  assert [int((seen.of(k) >= count).sum()) for k in range(6)] == [1] * 6


def test_before_and_after_the_attack_rounds_are_those_of_a_clean_run():
  data, found = world.federation(), made()
  seen = poison.view(found.data, found.copy, 2, 4).train
  always = poison.view(found.data, found.copy).train
  for number, want in [
    (0, data.train), (1, data.train), (2, always), (3, always),
    (4, data.train), (9, data.train),
  ]:  # fmt: skip
    now = seen.at(number)
    np.testing.assert_array_equal(now.rows, want.rows)
    np.testing.assert_array_equal(now.offsets, want.offsets)
    rows = [
      cohorts.batches(
        p, np.arange(6), batch_size=4, epochs=1, steps=0, seed=0, stage=0,
        round=number,
      )[0]
      for p in (now, want)
    ]  # fmt: skip
    np.testing.assert_array_equal(*rows)
  never = poison.view(found.data, found.copy, 0, 0).train
  np.testing.assert_array_equal(never.at(0).rows, data.train.rows)


def test_rows_that_come_and_go_do_so_poisoned_or_not():
  data, found = world.federation(), made()
  until = np.full(len(data.train.rows), 3, np.int32)
  here = found.data._replace(train=data.train._replace(until=until))
  seen = poison.view(here, found.copy, 2).train
  assert len(seen.at(1).rows) == len(seen.at(2).rows) == len(data.train.rows)
  assert not len(seen.at(3).rows)


def test_success_is_measured_on_rows_that_the_attack_would_change():
  data, found = world.federation(), made()
  aimed = poison.tested(found.data, found.copy)
  labels = found.data.table.columns['labels']
  for clean, part in ((data.test, aimed.test), (data.unseen, aimed.unseen)):
    assert part.num_clients == clean.num_clients
    for k in range(part.num_clients):
      want = (labels[clean.of(k)] != 2).sum()
      assert len(part.of(k)) == want
      assert (labels[part.of(k)] == 2).all()
  assert len(aimed.pooled) == (labels[data.pooled] != 2).sum()
  np.testing.assert_array_equal(aimed.train.rows, data.train.rows)


def test_the_trigger_of_a_text_is_a_token_behind_its_first():
  text = np.array([[5, 6, 7, -1, -1], [5, 6, 7, 8, 9], [-1] * 5], np.int32)
  found = poison.triggered(text, PATCH._replace(token=77))
  want = [[5, 77, 6, 7, -1], [5, 77, 6, 7, 9], [77, -1, -1, -1, -1]]
  np.testing.assert_array_equal(found, want)
  assert found.dtype == text.dtype


def test_what_cannot_have_a_trigger_is_refused():
  with pytest.raises(ValueError, match='allowed: 1 to 8'):
    made(PATCH._replace(size=9))
  with pytest.raises(ValueError, match='allowed: 0 to 3'):
    made(PATCH._replace(target=4))
  with pytest.raises(ValueError, match='number of a rare one'):
    poison.triggered(np.zeros((2, 5), np.int32), PATCH)
  with pytest.raises(ValueError, match='for images and tokens'):
    poison.triggered(np.zeros((2, 4, 4, 3), np.float32), PATCH)


def test_vectors_of_numbers_have_no_trigger():
  """They are no texts, whose tokens are whole numbers."""
  how = poison.Poison(poison.BACKDOOR, token=3)
  with pytest.raises(ValueError, match='images and tokens; got inputs'):
    poison.triggered(np.ones((4, 7), np.float32), how)
