"""Clipped, weighed and chosen means against NumPy, with clients that lie."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.core.contract import Context, Received
from fedms_jax.core.types import Roles
from fedms_jax.server import averaged, robust, robust_means
from tests import world

K, L = 9, 3
BAD = (2, 5)
AGGREGATORS = {
  'norm_bound': robust_means.norm_bound(0.0),
  'geometric_median': robust_means.geometric_median(16),
  'centered_clip': robust_means.centered_clip(0.0, 8),
  'flame': robust_means.flame(0.0),
  'multi_krum': robust.multi_krum(2),
  'bucketed': robust_means.bucketed(robust.median(), 2),
}
KEY = jax.random.key(1)


def flat(seed=0, lie=1e4, spread=1.0):
  """Changes of K clients as vectors around 3, those of BAD far off."""
  rng = np.random.default_rng(seed)
  x = 3 + spread * rng.normal(size=(K, L * 2 + 5)).astype(np.float32)
  x[list(BAD)] += lie
  return x.astype(np.float32)


def received(x, held=None):
  """The same as a tree of a stacked key and a head."""
  blocks = np.ones((len(x), L), np.float32) if held is None else held
  update = {
    'blocks': {'a': jnp.asarray(x[:, : L * 2].reshape(-1, L, 2))},
    'head': jnp.asarray(x[:, L * 2 :]),
  }
  cover = {
    'blocks': jnp.asarray(blocks) * 7.0,  # what a client weighs is not read
    'head': jnp.ones(len(x)),
  }
  count = jnp.ones(len(x))
  return Received(update, {}, cover, count, jnp.zeros(len(x)))


def before():
  return {'blocks': {'a': jnp.zeros((L, 2))}, 'head': jnp.zeros(5)}


def merged(aggregator, received):
  """What comes of a first round, by one program."""
  return program(aggregator)(before(), received)


@functools.cache
def program(aggregator):
  return jax.jit(aggregator.merge)


def vector(tree):
  return np.concatenate([np.ravel(tree['blocks']['a']), tree['head']])


@pytest.mark.parametrize('name', AGGREGATORS)
def test_two_liars_move_it_little(name):
  """The mean of the honest ones is 3; of all it is thousands."""
  x = flat()
  assert np.abs(x.mean(0)).min() > 1000
  found = vector(merged(AGGREGATORS[name], received(x)))
  assert np.abs(found - 3).max() < (2.6 if name != 'norm_bound' else 4)


@pytest.mark.parametrize('name', AGGREGATORS)
def test_clients_that_agree_are_taken_at_their_word(name):
  x = np.repeat(flat(lie=0.0)[:1], K, axis=0)
  found = vector(merged(AGGREGATORS[name], received(x)))
  np.testing.assert_allclose(found, x[0], rtol=1e-4)


@pytest.mark.parametrize('name', AGGREGATORS)
def test_of_a_block_only_its_holders_count(name):
  """What others have there is not looked at; nobody's block does not move."""
  held = np.ones((K, L), np.float32)
  held[:4, 1] = 0
  held[:, 2] = 0
  x = flat(lie=0.0)
  blank = x.copy()
  blank[:4, 2:4] = 0
  blank[:, 4:6] = 0
  noise = x.copy()
  noise[:4, 2:4] = 99
  noise[:, 4:6] = -99
  made = [
    vector(merged(AGGREGATORS[name], received(part, held)))
    for part in (blank, noise)
  ]
  np.testing.assert_allclose(made[0], made[1], rtol=1e-5)
  np.testing.assert_array_equal(made[0][4:6], np.zeros(2))
  assert np.isfinite(made[0]).all()


def test_a_norm_bound_by_hand():
  x = flat()
  norms = np.linalg.norm(x, axis=1)
  for bound in (2.0, 0.0):
    limit = bound or np.median(norms)
    want = (x * np.minimum(1, limit / norms)[:, None]).mean(0)
    got = merged(robust_means.norm_bound(bound), received(x))
    np.testing.assert_allclose(vector(got), want, rtol=1e-5)


def test_one_attacker_moves_a_bounded_mean_by_two_bounds_over_the_clients():
  aggregator = robust_means.norm_bound(2.0)
  honest = merged(aggregator, received(flat(lie=0.0)))
  x = flat(lie=0.0)
  x[2] = -1e6
  moved = vector(merged(aggregator, received(x))) - vector(honest)
  assert np.linalg.norm(moved) <= 2 * 2.0 / K * (1 + 1e-5)


def test_the_geometric_median_has_the_least_sum_of_distances():
  x = flat(lie=20.0)
  got = vector(merged(robust_means.geometric_median(60), received(x)))

  def total(point):
    return np.linalg.norm(x - point[None], axis=1).sum()

  rng = np.random.default_rng(0)
  for _ in range(20):
    assert total(got) <= total(got + 0.05 * rng.normal(size=got.shape)) + 1e-4
  few = vector(merged(robust_means.geometric_median(1), received(x)))
  mean = x.mean(0)
  w = 1 / np.linalg.norm(x - mean[None], axis=1)
  np.testing.assert_allclose(few, w @ x / w.sum(), rtol=1e-4)


def test_centered_clipping_begins_where_the_last_round_went():
  x = flat()
  last = received(x[:1] + 0.5)
  last = jax.tree.map(lambda v: v[0], last.update)
  v = vector(last).astype(np.float64)
  for _ in range(2):
    far = np.linalg.norm(x - v[None], axis=1)
    v = v + ((x - v[None]) * np.minimum(1, 1.5 / far)[:, None]).mean(0)
  aggregator = robust_means.centered_clip(1.5, 2)
  assert aggregator.draw is not None
  got = aggregator.draw(before(), received(x), last, KEY)
  np.testing.assert_allclose(vector(got), v, rtol=1e-3)


def test_a_server_hands_on_what_it_changed_last():
  """Two rounds of a server: the second begins where the first one went, and
  blocks that nobody holds have no such past."""
  aggregator = robust_means.centered_clip(1.5, 1)
  server = averaged.averaged(aggregator, optax.sgd(1.0))
  roles = Roles({}, before(), {})
  memory = server.init(KEY, roles)
  x, held = flat(), np.ones((K, L), np.float32)
  held[:, 2] = 0
  x[:, 4:6] = 0
  now = Context(KEY)
  once, memory, _ = server.step(roles, memory, received(x, held), now)
  world.close(memory['last'], once.shared)
  twice, memory, _ = server.step(once, memory, received(x, held), now)
  assert aggregator.draw is not None
  want = aggregator.draw(once.shared, received(x, held), once.shared, KEY)
  world.close(twice.shared, want)
  fresh = aggregator.merge(once.shared, received(x, held))
  assert not np.allclose(vector(want), vector(fresh))
  np.testing.assert_array_equal(memory['last']['blocks']['a'][2], [0, 0])


def test_multi_krum_by_hand():
  x = flat()
  squares = np.square(x[:, None] - x[None]).sum(-1).astype(np.float64)
  near = K - 2 - 2
  scores = [
    np.sort(np.delete(row, i))[:near].sum() for i, row in enumerate(squares)
  ]
  for keep, most in ((0, near), (3, 3), (1, 1)):
    best = np.argsort(scores)[:most]
    got = merged(robust.multi_krum(2, keep), received(x))
    np.testing.assert_allclose(vector(got), x[best].mean(0), rtol=1e-5)


def test_nobody_wins_a_block_that_few_hold():
  held = np.ones((K, L), np.float32)
  held[3:, 0] = 0  # 3 are fewer than 2 * 2 + 3
  got = merged(robust.multi_krum(2), received(flat(), held))
  np.testing.assert_array_equal(got['blocks']['a'][0], np.zeros(2))
  assert np.abs(got['blocks']['a'][1] - 3).max() < 3


def test_flame_admits_what_hdbscan_clusters():
  cluster = pytest.importorskip('sklearn.cluster')
  rng = np.random.default_rng(0)
  for seed in range(3):
    x = flat(seed, lie=0.0, spread=2.0)
    x[list(BAD)] *= -1.0
    x[8] = 4 * rng.normal(size=x.shape[1])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.maximum(1 - unit @ unit.T, 0).astype(np.float64)
    np.fill_diagonal(distance, 0)
    found = received(x)
    ours = robust_means.angles(found.update, robust_means.holders(found))
    np.testing.assert_allclose(ours, distance, atol=1e-5)
    admitted = np.asarray(robust_means.majority(ours, jnp.ones(K, bool)))
    theirs = cluster.HDBSCAN(
      min_cluster_size=K // 2 + 1, min_samples=1, metric='precomputed',
      allow_single_cluster=True, copy=True,
    ).fit(distance)  # fmt: skip
    np.testing.assert_array_equal(admitted, theirs.labels_ == 0)
    assert not admitted[list(BAD)].any() and admitted.sum() > K / 2


def test_the_noise_of_flame_is_of_the_median_norm():
  x = np.repeat(flat(lie=0.0)[:1], K, axis=0)
  aggregator = robust_means.flame(0.5)
  assert aggregator.draw is not None
  zero = jax.tree.map(jnp.zeros_like, before())
  draw = jax.jit(aggregator.draw)
  draws = [
    vector(draw(before(), received(x), zero, jax.random.key(i)))
    for i in range(40)
  ]
  std = np.std(np.stack(draws) - x[:1])
  assert std == pytest.approx(0.5 * np.linalg.norm(x[0]), rel=0.15)


def test_buckets_are_means_of_clients_drawn_in_each_round():
  """A bucketed mean is the mean where buckets are full; buckets differ between
  keys, and an order statistic of them is one of means of two."""
  x = flat(lie=0.0)[:8]
  whole = robust_means.bucketed(robust_means.norm_bound(1e9), 2)
  assert whole.draw is not None
  zero = jax.tree.map(jnp.zeros_like, before())
  found = vector(jax.jit(whole.draw)(before(), received(x), zero, KEY))
  np.testing.assert_allclose(found, x.mean(0), rtol=1e-5)
  pairs = robust_means.bucketed(robust.krum(0), 2)
  assert pairs.draw is not None
  means = (x[:, None] + x[None]) / 2
  chosen, draw = set(), jax.jit(pairs.draw)
  for i in range(6):
    got = vector(draw(before(), received(x), zero, jax.random.key(i)))
    far = np.abs(means - got).max(-1)
    np.fill_diagonal(far, np.inf)
    assert far.min() < 1e-4
    chosen.add(tuple(sorted(np.unravel_index(far.argmin(), far.shape))))
  assert len(chosen) > 1


def test_who_is_not_there_is_in_no_majority_and_no_median():
  x = flat()
  found = received(x)
  gone = [0, 1, 3, 4]
  cover = {
    'blocks': found.cover['blocks'].at[jnp.array(gone)].set(0),
    'head': found.cover['head'].at[jnp.array(gone)].set(0),
  }
  held = robust_means.holders(found._replace(cover=cover))
  there = robust_means.members(held)
  np.testing.assert_array_equal(np.flatnonzero(there == 0), gone)
  norms = np.array([5, 5, 1, 5, 5, 2, 3, 4, 9], np.float32)
  assert float(robust_means.middle(jnp.asarray(norms), there)) == 3.0
  admitted = robust_means.majority(
    robust_means.angles(found.update, held), there > 0
  )
  assert not admitted[jnp.array(gone)].any() and admitted.sum() >= 3
