"""Programs with the options that users compile by, which other tests leave to
XLA: those of an inner program are refused by JAX."""

import jax
import jax.numpy as jnp
import pytest

from fedms_jax.core import compile


@pytest.fixture
def options(monkeypatch):
  monkeypatch.setattr(compile, '_left_to_xla', [])
  compile._options.cache_clear()
  yield
  compile._options.cache_clear()


def test_a_program_is_a_part_of_the_one_that_calls_it(options):
  @compile.jit(static=(0,), light=True)
  def inner(power, x):
    return {'raised': x**power}

  x = jnp.arange(3.0)
  alone = inner(2, x)['raised']
  assert compile._options(True), 'no options, so that nothing is shown here'
  assert jax.eval_shape(lambda x: inner(2, x), x)['raised'].shape == (3,)
  calls = {
    'jit': jax.jit(lambda x: inner(2, x)['raised'])(x),
    'another with options': compile.jit()(lambda x: inner(2, x)['raised'])(x),
    'vmap': jax.vmap(lambda x: inner(2, x)['raised'])(x),
  }
  for name, got in calls.items():
    assert jnp.array_equal(got, alone), name
  gradient = jax.grad(lambda x: inner(2, x)['raised'].sum())(x)
  assert jnp.array_equal(gradient, 2 * x)
