"""Estimated slopes: exact where they must be, and right on average."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.core import client, zeroth
from fedms_jax.core.contract import Moment, Start
from fedms_jax.core.types import Plan, Roles
from fedms_jax.core.zeroth import Estimator

N = 5
RNG = np.random.default_rng(0)
M = RNG.normal(size=(N, N))
A = jnp.asarray(M @ M.T / N, jnp.float32)
W = jnp.asarray(RNG.normal(size=N), jnp.float32)
NONE = {'loss': jnp.ones(2)}


def quadratic(point):
  return 0.5 * point @ A @ point, NONE


@pytest.mark.parametrize('step', [0.05, 1.0, 20.0])
def test_two_losses_of_a_quadratic_give_its_slope_at_any_distance(step):
  z = zeroth.direction('gaussian', jax.random.key(1), W)
  d, _ = zeroth.slope_along(quadratic, W, z, step)
  np.testing.assert_allclose(d, z @ A @ W, rtol=2e-3, atol=2e-3)


def test_the_mean_over_all_signs_is_the_gradient():
  signs = jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=N)))
  found = jax.vmap(lambda z: zeroth.slope_along(quadratic, W, z, 0.5)[0] * z)(
    signs
  )
  np.testing.assert_allclose(found.mean(axis=0), A @ W, atol=1e-4)


# Of the square of an estimate over that of the gradient, in n dimensions.
SECOND = {
  'rademacher': N,
  'gaussian': N + 2,
  'spsa': 1 + (N - 1) * 7 / 6,
}


@pytest.mark.parametrize('kind', zeroth.KINDS)
def test_estimates_are_right_on_average_and_as_wide_as_their_law(kind):
  one = Estimator(kind, 0.5)

  def draw(key):
    loss = lambda point, batch: quadratic(point)  # noqa: E731
    return zeroth.estimate(one, loss, W, {}, key)[0]

  found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 40_000))
  slope = A @ W
  length = jnp.sum(slope**2)
  error = jnp.linalg.norm(found.mean(axis=0) - slope) / jnp.sqrt(length)
  assert error < 0.05
  second = jnp.mean(jnp.sum(found**2, axis=1)) / length
  np.testing.assert_allclose(second, SECOND[kind], rtol=0.05)


def test_more_directions_are_averaged_and_asked_for():
  losses = lambda point, batch: quadratic(point)  # noqa: E731
  many = Estimator('gaussian', 0.5, 7)
  found, _ = zeroth.estimate(many, losses, W, {}, jax.random.key(3))
  keys = jax.random.split(jax.random.key(3), 7)
  one = Estimator('gaussian', 0.5)
  each = [zeroth.estimate(one, losses, W, {}, key)[0] for key in keys]
  np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4)
  assert many.queries == 14 and one.queries == 2


def start(clock=0):
  roles = Roles({}, {'w': W}, {})
  return Start(roles, Plan((True,), 0), Moment(0, 0, 1, clock))


def taken(update, clock=0):
  begun = start(clock)
  carry = update.begin(begun)
  carry, _ = update.step(carry, begun, {}, jax.random.key(0))
  message, personal = update.finish(carry, begun)
  assert personal == {}
  return message.update['w']


def objective(roles, batch, key, start):
  del batch, key, start
  w = roles.shared['w']
  return 0.25 * jnp.sum(w**4), NONE


def test_distances_fall_with_the_clock_of_the_run():
  """Of a quartic, two losses give another slope at another distance."""
  falls = Estimator('rademacher', 0.8, decay=1.0)
  update = zeroth.zeroth(objective, optax.sgd(1.0), client.everywhere, falls)
  near = Estimator('rademacher', 0.2)
  other = zeroth.zeroth(objective, optax.sgd(1.0), client.everywhere, near)
  np.testing.assert_allclose(taken(update, 3), taken(other, 0), rtol=1e-5)
  assert np.abs(taken(update, 0) - taken(other, 0)).max() > 1e-3


@pytest.mark.parametrize(
  ('wrong', 'said'),
  [
    (Estimator('other'), "`Estimator.kind`='other'"),
    (Estimator(step=0.0), '`Estimator.step`=0.0'),
    (Estimator(directions=0), '`Estimator.directions`=0'),
  ],
)
def test_what_is_no_estimator_is_told(wrong, said):
  with pytest.raises(ValueError, match=said):
    zeroth.zeroth(objective, optax.sgd(1.0), client.everywhere, wrong)
