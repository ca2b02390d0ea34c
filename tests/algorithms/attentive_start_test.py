"""FedCAF and FedKEI: a pool of adapters, and starts that are learned of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import adapter_pool, attentive_start
from fedms_jax.core import reduction
from tests import world
from tests.algorithms import cohort
from tests.algorithms.two_models_test import noisy

CAF = attentive_start.Choice(pool=4, share=0.5, rate=0.1)
KEI = CAF._replace(clusters=2)
NAMES = {'fedcaf': CAF, 'fedkei': KEI}


@functools.cache
def method(name):
  choice = NAMES[name]
  algorithm = attentive_start.attentive(world.setting(), name, choice)
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  roles, memory, _ = reduction.begin(algorithm, roles, 0)
  return algorithm, roles, memory


def filled(memory, *adapters, logits=None, clusters=None):
  """The memory with these adapters in the pool."""
  size, count = len(memory['pool']['held']), len(adapters)
  pool = memory['pool'] | {
    'adapters': jax.tree.map(
      lambda *xs: jnp.stack([*xs, *[xs[0] * 0] * (size - count)]), *adapters
    ),
    'held': jnp.arange(size) < count,
  }
  pool['held'] = pool['held'].astype(jnp.float32)
  if logits is not None:
    pool['logits'] = jnp.asarray(logits)
  if clusters is not None:
    pool['clusters'] = jnp.asarray(clusters, jnp.int32)
  return memory | {'pool': pool}


def one_step(name, memory, steps=1):
  """(round's result, its roles before) of two clients with a step each."""
  algorithm, roles, _ = method(name)
  rows = world.cohort_rows(clients=2, steps=steps)
  rows = np.where(rows < 0, 1, rows)
  return cohort.one_round(
    algorithm, roles, rows, world.DENSE, memory=memory
  ), rows


@pytest.mark.parametrize(
  'name', ['fedcaf', pytest.param('fedkei', marks=pytest.mark.slow)]
)
def test_a_pool_of_one_is_the_start(name):
  """The one step of a client learns weights, of which there is no choice."""
  _, roles, memory = method(name)
  only = noisy(roles.shared, 3)
  found, _ = one_step(name, filled(memory, only, clusters=[0, 0, 1, 1]))
  for made in (0, 1):
    mine = jax.tree.map(lambda x, k=made: x[k], found.personal)
    world.close({key: mine[key] for key in only}, only)
  world.close(found.roles.shared, only)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_of_equal_adapters_the_weights_do_not_matter(name):
  _, roles, memory = method(name)
  one = noisy(roles.shared, 3)
  found, _ = one_step(
    name, filled(memory, one, one, one, clusters=[0, 0, 1, 1])
  )
  world.close(found.roles.shared, one)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_with_an_empty_pool_it_is_fedavg(name):
  algorithm, roles, memory = method(name)
  plain, start = world.first_stage()
  rows = world.cohort_rows()
  found = cohort.one_round(algorithm, roles, rows, world.DENSE, memory=memory)
  expected = cohort.one_round(plain, start, rows, world.DENSE)
  world.close(found.roles.shared, expected.roles.shared)
  # And what clients made is there, in their order.
  pool = found.memory['pool']
  assert pool['held'].tolist() == [1, 1, 1, 0]
  mine = {key: found.personal[key] for key in ('blocks', 'head')}
  world.close(jax.tree.map(lambda x: x[:3], pool['adapters']), mine)


@pytest.mark.slow
def test_a_step_of_attention_by_an_oracle():
  """FedCAF follows the slope of the loss by the softmax of the pool; a first
  step of Adam is its sign times the rate."""
  _, roles, memory = method('fedcaf')
  one, two = (noisy(roles.shared, seed, 0.5) for seed in (3, 4))
  found, rows = one_step('fedcaf', filled(memory, one, two))
  data, plain = world.columns(), world.first_stage()[0]

  def loss(v, rows):
    a = jax.nn.softmax(v)
    theta = jax.tree.map(lambda x, y: a[0] * x + a[1] * y, one, two)
    batch = {
      'inputs': data['inputs'][rows],
      'labels': data['labels'][rows],
      'mask': rows >= 0,
    }
    shared = roles._replace(shared=theta, personal={})
    batch |= plain.columns(shared, batch, world.DENSE)
    out = plain.predict(shared, batch, world.DENSE).logits['global']
    return world.TASK.loss(out, batch)[0].mean()

  for k in range(2):
    slope = jax.grad(loss)(jnp.zeros(2), rows[k, 0])
    assert np.abs(slope).min() > 1e-4
    a = jax.nn.softmax(-CAF.rate * jnp.sign(slope))
    theta = jax.tree.map(lambda x, y, a=a: a[0] * x + a[1] * y, one, two)
    mine = jax.tree.map(lambda x, k=k: x[k], found.personal)
    world.close({key: mine[key] for key in theta}, theta, atol=1e-4)


@pytest.mark.slow
def test_after_attention_the_start_is_tuned():
  _, roles, memory = method('fedcaf')
  only = noisy(roles.shared, 3)
  found, _ = one_step('fedcaf', filled(memory, only), steps=2)
  moved = jax.tree.map(
    lambda x, y: np.abs(x - y).max(), found.roles.shared, only
  )
  assert min(jax.tree.leaves(moved)) > 1e-5
  plain, start = world.first_stage()
  second = world.cohort_rows(clients=2, steps=2)[:, 1:]
  second = np.where(second < 0, 1, second)
  expected = cohort.one_round(
    plain, start._replace(shared=only), second, world.DENSE
  )
  world.close(found.roles.shared, expected.roles.shared)


def test_weights_of_clusters_and_within_them():
  pool = {
    'held': jnp.array([1.0, 1, 1, 0]),
    'clusters': jnp.array([0, 1, 1, 1]),
  }
  outer, inner = jnp.log(jnp.array([3.0, 1.0])), jnp.log(jnp.arange(1.0, 5))
  found = adapter_pool.weights(pool, outer, inner)
  # alpha = (3/4, 1/4); within the second: 2 and 3 of 5.
  np.testing.assert_allclose(found, [0.75, 0.1, 0.15, 0], rtol=1e-5)
  nobody = pool | {'held': jnp.zeros(4)}
  np.testing.assert_array_equal(
    adapter_pool.weights(nobody, outer, inner), np.zeros(4)
  )
  alone = pool | {'held': jnp.array([0.0, 1, 1, 0])}  # no first cluster
  np.testing.assert_allclose(
    adapter_pool.weights(alone, outer, inner), [0, 0.4, 0.6, 0], rtol=1e-5
  )


def test_a_pool_keeps_the_newest_with_their_numbers():
  pool = adapter_pool.empty(3, {'x': jnp.zeros(1)})
  made = {'x': jnp.array([[1.0], [2.0], [3.0]])}
  pool = adapter_pool.renewed(pool, made, jnp.array([True, False, True]))
  assert pool['adapters']['x'][:, 0].tolist()[:2] == [1, 3]
  assert pool['held'].tolist() == [1, 1, 0]
  pool = pool | {'logits': jnp.array([5.0, 6.0, 7.0])}
  made = {'x': jnp.array([[4.0], [9.0]])}
  pool = adapter_pool.renewed(pool, made, jnp.array([True, False]))
  assert pool['adapters']['x'][:, 0].tolist() == [4, 1, 3]
  assert pool['logits'].tolist() == [0, 5, 6]


def test_clusters_are_of_directions():
  rng = np.random.default_rng(0)
  near = np.array([[1, 0, 0], [0, 1, 0]])[[0, 1, 0, 1, 0]]
  x = near * rng.uniform(1, 9, (5, 1)) + 0.05 * rng.normal(size=(5, 3))
  x = np.concatenate([x, [[0, 0, 99]]])  # a place that is not taken
  pool = adapter_pool.empty(6, {'x': jnp.zeros(3)}) | {
    'adapters': {'x': jnp.asarray(x, jnp.float32)},
    'held': jnp.array([1.0] * 5 + [0]),
  }
  found = adapter_pool.grouped(pool, 2)['clusters'][:5].tolist()
  assert found in ([0, 1, 0, 1, 0], [1, 0, 1, 0, 1])


@pytest.mark.slow
def test_what_counts_within_a_cluster_is_averaged():
  """FedKEI: beta moves on the second half of a batch, and the pool keeps its
  mean with the adapters that it weighs."""
  _, roles, memory = method('fedkei')
  some = [noisy(roles.shared, seed, 0.5) for seed in (3, 4)]
  memory = filled(memory, *some, logits=[0.3, 0.2, 0, 0], clusters=[0, 0, 1, 1])
  found, _ = one_step('fedkei', memory)
  pool = found.memory['pool']
  # Two new ones first; both clients moved each number by 0.1 or -0.1.
  assert pool['logits'][:2].tolist() == [0, 0]
  moved = np.abs(pool['logits'][2:] - np.array([0.3, 0.2]))
  assert np.allclose(moved, 0.1, atol=1e-3) or np.allclose(moved, 0, atol=1e-3)
  assert pool['held'].tolist() == [1, 1, 1, 1]


def test_a_newcomer_has_the_mixture_of_the_pool():
  algorithm, roles, memory = method('fedcaf')
  one, two = (noisy(roles.shared, seed, 0.5) for seed in (3, 4))
  seen = reduction.broadcast(algorithm, roles, filled(memory, one, two))
  mean = jax.tree.map(lambda x, y: (x + y) / 2, one, two)
  world.close(algorithm.models(seen)['local'], mean)
  own = seen.personal | {'trained': jnp.float32(1)}
  mine = algorithm.models(seen._replace(personal=own))['local']
  world.same(mine, {key: own[key] for key in mine})
