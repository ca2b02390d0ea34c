"""Server optimizers move as those of FedOpt do."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.server import optimizers

RATE = 0.01


def first_step(name, delta):
  """What the server adds to a parameter after the first mean update."""
  optimizer = optimizers.server(name, RATE, 0.9)
  zero = jnp.zeros(())
  step, _ = optimizer.update(zero - delta, optimizer.init(zero), zero)
  return float(step)


@pytest.mark.parametrize('name', ['adagrad', 'adam', 'yogi'])
def test_adaptive_ones_move_by_the_rate_where_updates_are_beyond_tau(name):
  for delta in (0.1, 1.0, -1.0):
    step = first_step(name, delta)
    assert step == pytest.approx(np.sign(delta) * RATE, rel=0.02)


@pytest.mark.parametrize('name', ['adagrad', 'adam', 'yogi'])
def test_adaptive_ones_hardly_move_where_updates_are_within_tau(name):
  step = first_step(name, 0.02 * optimizers.TAU)
  assert 0 < step <= 0.021 * RATE  # rate * delta / tau, or less


def test_the_others_are_the_mean_update_times_the_rate():
  for name in ('mean', 'momentum'):
    assert first_step(name, 0.3) == pytest.approx(0.3 * RATE)


NAMES = ('mean', 'momentum', 'nesterov', 'fedmom', 'adagrad', 'adam', 'yogi')


def path(name, gradients, rate=0.7, momentum=0.9, start=0.0):
  """Where a parameter is after each of these pseudo-gradients."""
  optimizer = optimizers.server(name, rate, momentum)
  x = jnp.float32(start)
  state, out = optimizer.init(x), []
  for g in gradients:
    step, state = optimizer.update(jnp.float32(g), state, x)
    x = x + step
    out.append(float(x))
  return out


def test_nesterov_by_hand():
  np.testing.assert_allclose(
    path('nesterov', [1.0] * 3), [-1.33, -3.227, -5.6343], rtol=1e-5
  )
  many = path('nesterov', [1.0] * 200)
  assert many[-2] - many[-1] == pytest.approx(7.0, rel=1e-4)


def test_fedmom_is_nesterov_in_other_variables():
  gradients = [0.3, -1.0, 2.0, 0.1, 0.7, -0.2]
  for start in (0.0, 5.0):
    np.testing.assert_allclose(
      path('fedmom', gradients, start=start),
      path('nesterov', gradients, start=start),
      rtol=1e-5,
    )


@pytest.mark.parametrize('name', NAMES)
def test_every_server_goes_downhill(name):
  """x^2 / 2 from 1, whose pseudo-gradient is x: no sign is turned."""
  (after,) = path(name, [1.0], rate=0.1, start=1.0)
  assert 0 <= after < 1


@pytest.mark.parametrize('name', NAMES)
def test_no_pseudo_gradient_moves_nothing(name):
  assert path(name, [0.0, 0.0], start=2.0) == [2.0, 2.0]
