"""Robust aggregators against numpy, with a client that sends nonsense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.core.contract import Received
from fedms_jax.server import robust

CLIENTS, BLOCKS = 7, 3
BAD = 4
AGGREGATORS = {
  'median': robust.median(),
  'trimmed_mean': robust.trimmed_mean(0.2),
  'krum': robust.krum(1),
}


def updates(seed=0):
  """Changes of shared keys [K, ...], the one of client BAD far off."""
  rng = np.random.default_rng(seed)
  stacked = rng.normal(size=(CLIENTS, BLOCKS, 4, 2)).astype(np.float32)
  head = rng.normal(size=(CLIENTS, 5)).astype(np.float32)
  stacked[BAD] += 1e4
  head[BAD] -= 1e4
  return {'blocks': {'a': stacked}, 'head': head}


def weights():
  rows = np.random.default_rng(1).integers(1, 50, CLIENTS).astype(np.float32)
  return {'blocks': np.repeat(rows[:, None], BLOCKS, 1), 'head': rows}


def before():
  return {
    'blocks': {'a': jnp.full((BLOCKS, 4, 2), 10.0)},
    'head': jnp.full(5, -3.0),
  }


def merged(name, values, held):
  received = Received(values, {}, held, CLIENTS, 0.0)
  return AGGREGATORS[name].merge(before(), received)


def by_hand(name, x):
  if name == 'median':
    return np.median(x, axis=0)
  ordered = np.sort(x, axis=0)
  cut = int(0.2 * len(x))
  return ordered[cut : len(x) - cut].mean(axis=0)


@pytest.mark.parametrize('name', ['median', 'trimmed_mean'])
@pytest.mark.parametrize('clients', [CLIENTS, 6])
def test_order_statistics_of_each_coordinate(name, clients):
  """Odd and even numbers of clients; a client of weight zero is not there."""
  values, held = updates(), weights()
  for key in held:
    held[key][clients:] = 0
  after = merged(name, values, held)
  for found, start, x in (
    (after['blocks']['a'], 10.0, values['blocks']['a'][:clients]),
    (after['head'], -3.0, values['head'][:clients]),
  ):
    np.testing.assert_allclose(found - start, by_hand(name, x), atol=1e-5)
    assert np.abs(found - start).max() < 10  # the mean is off by a thousand


@pytest.mark.parametrize('name', ['median', 'trimmed_mean'])
def test_of_a_block_only_its_holders_count(name):
  values, held = updates(), weights()
  held['blocks'][:2, 1] = 0
  held['blocks'][:, 2] = 0
  after = np.asarray(merged(name, values, held)['blocks']['a'])
  x = values['blocks']['a']
  np.testing.assert_allclose(after[0] - 10, by_hand(name, x[:, 0]), atol=1e-5)
  np.testing.assert_allclose(after[1] - 10, by_hand(name, x[2:, 1]), atol=1e-5)
  assert np.isfinite(after).all()  # nobody held block 2


def krum_by_hand(flat, bad):
  squares = np.square(flat[:, None] - flat[None]).sum(-1)
  scores = [
    np.sort(np.delete(row, i))[: len(flat) - bad - 2].sum()
    for i, row in enumerate(squares)
  ]
  return int(np.argmin(scores))


@pytest.mark.parametrize('seed', range(4))
def test_krum_takes_one_client_whole(seed):
  values = updates(seed)
  flat = np.concatenate(
    [values['blocks']['a'].reshape(CLIENTS, -1), values['head']], axis=1
  )
  chosen = krum_by_hand(flat.astype(np.float64), 1)
  assert chosen != BAD
  after = merged('krum', values, weights())
  np.testing.assert_allclose(
    after['blocks']['a'], 10 + values['blocks']['a'][chosen], rtol=1e-5
  )
  np.testing.assert_allclose(
    after['head'], -3 + values['head'][chosen], rtol=1e-5
  )


def test_krum_takes_a_block_from_the_best_of_its_holders():
  values, held = updates(), weights()
  best = int(
    np.argmin(
      [
        np.abs(
          10 + values['head'][k] - 10 - merged('krum', values, held)['head'] - 3
        ).max()
        for k in range(CLIENTS)
      ]
    )
  )
  held['blocks'][best, 1] = 0
  after = np.asarray(merged('krum', values, held)['blocks']['a']) - 10
  sources = [
    int(np.argmin([np.abs(after[b] - values['blocks']['a'][k, b]).max()
                   for k in range(CLIENTS)]))
    for b in range(BLOCKS)
  ]  # fmt: skip
  assert sources[0] == sources[2] != sources[1]
  assert best != sources[1] and BAD not in sources


def flat(values):
  blocks = values['blocks']['a'].reshape(len(values['head']), -1)
  return np.concatenate([blocks, values['head']], axis=1)


def bulyan_by_hand(x, bad):
  left, chosen = list(range(len(x))), []
  for _ in range(len(x) - 2 * bad):
    squares = np.square(x[left][:, None] - x[left][None]).sum(-1)
    most = max(len(left) - bad - 2, 1)
    scores = [
      np.sort(np.delete(row, i))[:most].sum() for i, row in enumerate(squares)
    ]
    chosen.append(left.pop(int(np.argmin(scores))))
  some = x[chosen]
  middle = np.median(some, axis=0)
  near = np.argsort(np.abs(some - middle), axis=0)[: len(x) - 4 * bad]
  return np.take_along_axis(some, near, axis=0).mean(0)


@pytest.mark.parametrize('seed', range(3))
def test_bulyan_is_that_of_the_paper(seed):
  values = updates(seed)
  want = bulyan_by_hand(flat(values).astype(np.float64), 1)
  received = Received(values, {}, weights(), CLIENTS, 0.0)
  start = jax.tree.map(jnp.zeros_like, before())
  got = jax.jit(robust.bulyan(1).merge)(start, received)
  found = np.concatenate([np.ravel(got['blocks']['a']), got['head']])
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
  assert np.abs(found).max() < 10  # the mean is off by a thousand


def test_bulyan_bears_what_krum_takes_for_the_best():
  """The mean of all others, but for one coordinate, is near everybody."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(CLIENTS, 200)).astype(np.float32)
  x[BAD] = np.delete(x, BAD, axis=0).mean(0)
  x[BAD, 3] += 10
  honest = np.delete(x, BAD, axis=0)[:, 3]
  held = {'head': jnp.ones(CLIENTS)}
  received = Received({'head': jnp.asarray(x)}, {}, held, CLIENTS, 0.0)
  start = {'head': jnp.zeros(200)}
  assert robust.krum(1).merge(start, received)['head'][3] > 9
  found = robust.bulyan(1).merge(start, received)['head'][3]
  assert honest.min() <= found <= honest.max()


def test_nobody_wins_by_bulyan_a_block_that_few_hold():
  values, held = updates(), weights()
  held['blocks'][0, 1] = 0  # 6 are fewer than 4 + 3
  received = Received(values, {}, held, CLIENTS, 0.0)
  start = before()
  after = robust.bulyan(1).merge(start, received)['blocks']['a']
  np.testing.assert_array_equal(after[1], start['blocks']['a'][1])
  assert not np.allclose(after[0], start['blocks']['a'][0])


@pytest.mark.parametrize(
  'aggregator', [robust.krum(1), robust.multi_krum(1), robust.bulyan(1)]
)
@pytest.mark.parametrize('lie', [1e25, np.inf])
def test_a_lie_whose_square_overflows_is_far_off(aggregator, lie):
  values = updates()
  values['head'][BAD], values['blocks']['a'][BAD] = lie, -lie
  received = Received(values, {}, weights(), CLIENTS, 0.0)
  after = aggregator.merge(before(), received)
  assert np.abs(after['head'] + 3).max() < 10
  assert np.abs(after['blocks']['a'] - 10).max() < 10


def test_a_single_client_is_taken_as_it_is():
  values, held = updates(), weights()
  for key in held:
    held[key][[i for i in range(CLIENTS) if i != 3]] = 0
  for name in AGGREGATORS:
    after = merged(name, values, held)
    np.testing.assert_allclose(after['head'], -3 + values['head'][3], rtol=1e-5)


@pytest.mark.parametrize('name', AGGREGATORS)
def test_weights_of_other_clients_than_the_changes_are_refused(name):
  held = weights()
  held['head'] = held['head'][:1]  # would be broadcast
  with pytest.raises(AssertionError):
    merged(name, updates(), held)
