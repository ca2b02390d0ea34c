"""Gradients of DP-SGD: the bound of a row, the noise, the nominal batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.core import client, private_gradient, tree

KEY = jax.random.key(3)
TRAIN = {'w': jnp.asarray([0.5, -1.0]), 'b': jnp.float32(0.25)}


def batch(values, mask):
  """Rows x [B, 2], of which the last one belongs to nobody."""
  return {'x': jnp.asarray(values, jnp.float32), 'mask': jnp.asarray(mask)}


def loss(train, rows):
  """Half the squares, and their number."""
  out = rows['x'] @ train['w'] + train['b']
  values = jnp.where(rows['mask'], 0.5 * out**2, 0.0)
  count = jnp.sum(rows['mask'].astype(jnp.float32))
  total = jnp.sum(values)
  return total / jnp.maximum(count, 1.0), {'loss': jnp.stack([total, count])}


X = [[1.0, 2.0], [0.1, 0.0], [30.0, -4.0], [5.0, 5.0], [9.0, 9.0]]
ROWS = batch(X, [True, True, True, False, True])


def by_hand(rows, clip, nominal):
  total = np.zeros(3)
  for x in np.asarray(rows, np.float64):
    out = x @ [0.5, -1.0] + 0.25
    slope = out * np.append(x, 1.0)
    total += slope * min(1.0, clip / np.linalg.norm(slope))
  return total / nominal


@pytest.mark.parametrize('clip', [0.3, 2.0, 1e9])
def test_it_is_the_sum_of_clipped_gradients_over_the_nominal_batch(clip):
  gradient = private_gradient.private_gradient(clip, 0.0, 8)
  found, sums = jax.jit(lambda b: gradient(loss, TRAIN, b, KEY))(ROWS)
  np.testing.assert_allclose(
    [*found['w'], found['b']], by_hand(X[:3], clip, 8), rtol=1e-5
  )
  plain = loss(TRAIN, batch(X, [True, True, True, False, False]))[1]
  np.testing.assert_allclose(sums['loss'], plain['loss'], rtol=1e-6)


@pytest.mark.parametrize('worst', [1e20, np.nan, np.inf, 0.0])
def test_one_row_moves_it_by_no_more_than_the_clip(worst):
  gradient = private_gradient.private_gradient(0.5, 0.0, 4)
  moved = [list(row) for row in X]
  moved[1] = [worst, worst]
  without = batch(X, [True, False, True, False, True])
  found = [gradient(loss, TRAIN, rows, KEY)[0]
           for rows in (without, batch(moved, ROWS['mask']))]  # fmt: skip
  apart = jnp.sqrt(tree.squared_norm(tree.subtract(*found)))
  assert float(apart) <= 0.5 / 4 * (1 + 1e-5)


def test_a_step_of_no_rows_is_noise_of_z_times_c():
  gradient = private_gradient.private_gradient(0.5, 3.0, 4)
  empty = batch(X, [False] * 4 + [True])

  def one(key):
    found, sums = gradient(loss, TRAIN, empty, key)
    return jnp.append(found['w'], found['b']), sums['loss']

  draws, sums = jax.vmap(one)(jax.random.split(KEY, 4000))
  np.testing.assert_allclose(np.std(draws, axis=0), 0.375, rtol=0.05)
  np.testing.assert_allclose(np.mean(draws, axis=0), 0.0, atol=0.03)
  assert not np.asarray(sums).any()


def test_what_is_not_private_is_the_plain_gradient():
  rows = batch(X, [True, True, True, False, False])
  found, _ = client.mean_gradient(loss, TRAIN, rows, KEY)
  np.testing.assert_allclose(
    [*found['w'], found['b']], by_hand(X[:3], np.inf, 3), rtol=1e-5
  )
