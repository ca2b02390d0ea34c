"""pFedMe on a quadratic loss, by hand, and on a model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedms_jax.algorithms import moreau
from fedms_jax.core.contract import Start
from fedms_jax.core.types import Plan, Roles
from tests import world

CENTER = np.array([1.0, -2.0, 0.5], np.float32)
PULL, RATE = 3.0, 0.1


def quadratic(roles, batch, key, start):
  """1/2 ||theta - batch||^2, whose envelope has a closed form."""
  del key, start
  away = roles.personal['head']['x'] - batch
  return jnp.sum(away**2) / 2, {'loss': jnp.zeros(2), 'score': jnp.zeros(2)}


def descend(w, centers, steps, inner_rate):
  update = moreau.envelope(
    quadratic, optax.sgd(inner_rate), PULL, steps, RATE
  )  # fmt: skip
  tree = {'head': {'x': jnp.asarray(w)}}
  roles = Roles({}, tree, {'head': {'x': jnp.full(3, 9.0)}})
  start = Start(roles, Plan((), 0))
  carry = update.begin(start)
  for center in centers:
    carry, _ = update.step(carry, start, center, jax.random.key(0))
  message, own = update.finish(carry, start)
  return message.update['head']['x'], own['head']['x']


def test_theta_is_the_proximal_point_and_w_descends_on_the_envelope():
  """theta = (c + pull w) / (1 + pull), then w - rate pull (w - theta)."""
  w = np.array([0.0, 1.0, 2.0], np.float32)
  for centers in ([CENTER], [CENTER, -CENTER]):
    found = descend(w, centers, 50, 0.2)
    expected = w
    for center in centers:
      theta = (center + PULL * expected) / (1 + PULL)
      expected = expected - RATE * PULL * (expected - theta)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    np.testing.assert_allclose(found[1], theta, rtol=1e-5)


def test_steps_of_theta_one_by_one():
  """theta goes on where the last batch left it; w moved in between."""
  w, rate = np.array([0.0, 1.0, 2.0], np.float32), 0.1
  found = descend(w, [CENTER, CENTER], 2, rate)
  theta = now = w
  for _ in range(2):
    for _ in range(2):
      theta = theta - rate * (theta - CENTER + PULL * (theta - now))
    now = now - RATE * PULL * (now - theta)
  np.testing.assert_allclose(found[0], now, rtol=1e-5)
  np.testing.assert_allclose(found[1], theta, rtol=1e-5)


def test_a_first_step_is_sgd_of_the_shared_model():
  """With one inner step, w - theta is the inner rate times the gradient."""
  algorithm = moreau.pfedme(
    world.setting(), pull=2.0, steps=1, learning_rate=0.1
  )
  together, roles = world.first_stage()
  own = jax.tree.map(lambda x: x + 1, roles.shared)  # of an earlier round
  rows = world.cohort_rows(clients=1, steps=1)
  start = roles._replace(personal=own)
  shared, theta, _ = world.train(algorithm, start, rows, world.TOP)
  step = world.train(together, roles, rows, world.TOP)[0]
  world.close(jax.tree.map(lambda x: x[0], theta), step)
  expected = jax.tree.map(
    lambda w, x: w - 0.2 * (w - x), roles.shared, step
  )  # fmt: skip
  world.close(shared, expected, atol=1e-6)
