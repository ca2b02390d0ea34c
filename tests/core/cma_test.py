"""CMA-ES: its laws, and that it is what the package `cma` computes."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.core import cma, evolution
from fedms_jax.core.contract import Moment, Start
from fedms_jax.core.types import Plan, Roles


def test_the_weights_of_six_points_are_those_of_the_tutorial():
  found = cma.weights(6)
  np.testing.assert_allclose(found, [0.637, 0.2846, 0.0784], atol=5e-5)
  np.testing.assert_allclose(1 / np.sum(found**2), 2.0286, atol=1e-4)
  assert [cma.usual_population(n) for n in (2, 10, 100, 500)] == [6, 10, 17, 22]


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def searched(f, state, shape, population, generations, seed=0):
  """The state after so many generations of the least of f."""
  share = cma.weights(population)

  def one(state, key):
    steps, root = cma.ask(shape, state, key, population)
    values = jax.vmap(f)(cma.points(state, steps))
    best = cma.order(values)[: len(share)]
    return cma.tell(shape, state, steps[best], share, root), ()

  keys = jax.random.split(jax.random.key(seed), generations)
  return jax.lax.scan(one, state, keys)[0]


def sphere(x):
  return jnp.sum((x - 1) ** 2)


@pytest.mark.parametrize(
  ('n', 'population', 'reached', 'diagonal'),
  [(2, 6, 1e-10, False), (10, 10, 1e-10, False), (20, 12, 1e-6, False),
   (10, 10, 1e-10, True)],
)  # fmt: skip
def test_it_finds_the_least_of_a_sphere(n, population, reached, diagonal):
  shape = cma.Shape(n, diagonal)
  found = searched(sphere, cma.begin(shape, 0.5), shape, population, 200)
  assert sphere(found['mean']) < reached
  assert found['covariance'].shape == ((n,) if diagonal else (n, n))


def stretched(x):
  return jnp.sum(jnp.array([1.0, 30.0, 1000.0]) * (x - 1) ** 2)


def test_the_covariance_learns_what_is_steep():
  shape = cma.Shape(3)
  found = searched(stretched, cma.begin(shape, 0.5), shape, 8, 120)
  values = np.linalg.eigvalsh(found['covariance'])
  assert values[-1] / values[0] > 100
  assert stretched(found['mean']) < 1e-8


SHAPE = cma.Shape(4)


def monotone(x):
  return jnp.arctan(3 * sphere(x)) - 7


def moved(x):
  return sphere(x - 5)


def test_only_the_order_of_values_matters_and_not_where_it_begins():
  begun = cma.begin(SHAPE, 0.5)
  usual = searched(sphere, begun, SHAPE, 8, 12)
  other = searched(monotone, begun, SHAPE, 8, 12)
  for name in usual:
    np.testing.assert_array_equal(usual[name], other[name])
  there = begun | {'mean': begun['mean'] + 5}
  far = searched(moved, there, SHAPE, 8, 12)
  np.testing.assert_allclose(far['mean'] - 5, usual['mean'], atol=1e-4)


def slope(x):
  return x[0]


def test_steps_grow_on_a_slope():
  found = searched(slope, cma.begin(SHAPE, 0.5), SHAPE, 8, 30)
  assert found['log_sigma'] > jnp.log(0.5) + 1


def test_what_is_not_a_number_is_last_and_equal_ones_stay_in_order():
  values = jnp.array([3.0, jnp.nan, 1.0, 3.0, jnp.inf, 1.0])
  np.testing.assert_array_equal(cma.order(values)[:4], [2, 5, 0, 3])
  assert set(np.asarray(cma.order(values)[4:])) == {1, 4}


def test_eigenvalues_that_rounding_made_negative_stay_small_steps():
  state = cma.begin(SHAPE, 0.5)
  state['covariance'] = jnp.diag(jnp.array([4.0, 1.0, -1e-6, 1e-30]))
  root = cma.root(SHAPE, state)
  assert np.isfinite(root.lengths).all() and (root.lengths > 0).all()
  assert root.lengths.max() == 2


@pytest.mark.parametrize('n', [3, 8])
def test_it_is_what_the_package_computes(n):
  """Told of the same points: mean, step size, covariance and paths. It has
  other rates than the tutorial by now, and gets those here."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # that it cannot plot
    cma_package = pytest.importorskip('cma', reason='the extra test has it')
  options = {'CMA_active': False, 'verbose': -9, 'seed': 3, 'popsize': 8,
             'CMA_diagonal': 0}  # fmt: skip
  theirs = cma_package.CMAEvolutionStrategy(n * [0.0], 0.5, options)
  shape, share = cma.Shape(n), cma.weights(8)
  state = cma.begin(shape, 0.5)
  usual = cma.rates(shape, 1 / jnp.sum(share**2))
  theirs.adapt_sigma.initialize(theirs)
  theirs.adapt_sigma.cs = float(usual.path_sigma)
  theirs.adapt_sigma.damps = float(usual.damping)
  learned = {'c1': float(usual.one), 'cmu': float(usual.parents)}
  theirs.sm.parameters = lambda **_: learned
  theirs.sp.cc = float(usual.path)
  for _ in range(6):
    points = np.array(theirs.ask())
    values = np.array([float(stretched(x[:3])) for x in points])
    sigma = np.exp(float(state['log_sigma']))
    steps = jnp.asarray((points - np.asarray(state['mean'])) / sigma)
    best = cma.order(jnp.asarray(values))[: len(share)]
    root = cma.root(shape, state)
    state = cma.tell(shape, state, steps.astype(jnp.float32)[best], share, root)
    theirs.tell(list(points), list(values))
    np.testing.assert_allclose(state['mean'], theirs.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
      np.exp(state['log_sigma']), theirs.sigma, rtol=2e-3
    )
    np.testing.assert_allclose(
      state['covariance'], theirs.sm.covariance_matrix, rtol=2e-3, atol=2e-4
    )
    np.testing.assert_allclose(
      state['path_covariance'], theirs.pc, rtol=2e-3, atol=1e-3
    )


def start(search, step=0):
  return Start(
    Roles({}, {'search': search}, {}),
    Plan((True,), 0),
    Moment(0, step, 3, step),
  )


def fitness(point, start, batch, key):
  del start, key
  value = jnp.sum((point - batch['optimum']) ** 2)
  return value, {'loss': jnp.stack([value, jnp.float32(1)])}


def generations(strategy, search, optimum, seed, count):
  update = evolution.evolution(fitness, strategy, ('loss',))
  carry = update.begin(start(search))
  for i in range(count):
    key = jax.random.fold_in(jax.random.key(seed), i)
    carry, _ = update.step(carry, start(search, i), {'optimum': optimum}, key)
  return update.finish(carry, start(search))


AVERAGED = evolution.Strategy(cma.Shape(20), 5)


@functools.partial(jax.jit, static_argnums=(1,))
def averaged_rounds(optima, rounds):
  """The mean of searches of K clients, of 8 generations a round."""

  def one(search, number):
    def client(optimum, k):
      seed = number * 100 + k
      message, _ = generations(AVERAGED, search, optimum, seed, 8)
      return message.update['search']

    each = jax.vmap(client)(optima, jnp.arange(len(optima)))
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), each), ()

  begun = cma.begin(AVERAGED.shape, 0.5)
  return jax.lax.scan(one, begun, jnp.arange(rounds))[0]


def test_the_mean_of_searches_finds_what_serves_all_clients():
  """K = 10, lambda = 5: of equal quadratics the least, and of those that are
  spread nearly that of their mean."""
  alike = jnp.ones((10, 20))
  found = averaged_rounds(alike, 60)['mean']
  assert jnp.sum((found - 1) ** 2) < 1e-10
  spread = jnp.asarray(np.random.default_rng(0).normal(size=(10, 20)))
  optima = 1 + spread - spread.mean(axis=0, keepdims=True)
  found = averaged_rounds(optima, 60)['mean']
  assert jnp.sum((found - 1) ** 2) < 0.05 * 20


def test_metrics_of_a_generation_are_the_means_of_its_points():
  update = evolution.evolution(fitness, AVERAGED, ('loss',))
  search = cma.begin(AVERAGED.shape, 0.5)
  key, optimum = jax.random.key(4), jnp.ones(20)

  @jax.jit
  def first(search, optimum, key):
    begun = start(search)
    return update.step(update.begin(begun), begun, {'optimum': optimum}, key)

  _, sums = first(search, optimum, key)
  steps, _ = cma.ask(AVERAGED.shape, search, jax.random.fold_in(key, 0), 5)
  values = jnp.sum((cma.points(search, steps) - 1) ** 2, axis=1)
  np.testing.assert_allclose(sums['loss'], [values.mean(), 1], rtol=1e-5)


@pytest.mark.parametrize(
  ('strategy', 'said'),
  [
    (evolution.Strategy(cma.Shape(1), 5), '`Shape.size`=1'),
    (evolution.Strategy(cma.Shape(4), 3), '`Strategy.population`=3'),
  ],
)
def test_what_is_no_search_is_told(strategy, said):
  with pytest.raises(ValueError, match=said):
    evolution.evolution(fitness, strategy)
