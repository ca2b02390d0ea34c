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
