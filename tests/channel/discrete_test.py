"""Discrete noise: its law, its sum over clients, and the bound of its norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.channel import discrete
from fedms_jax.core import tree

special = pytest.importorskip('scipy.special')
stats = pytest.importorskip('scipy.stats')
KEY = jax.random.key(5)


@pytest.mark.parametrize('deviation', [0.3, 2.0, 100.0])
def test_the_table_is_the_distribution(deviation):
  least, thresholds = discrete.table(deviation)
  places = np.arange(least, least + len(thresholds))
  found = np.diff(thresholds / 2.0**32, prepend=0.0)
  half = deviation**2 / 2
  wanted = stats.skellam.pmf(places, half, half)
  np.testing.assert_allclose(found, wanted, atol=2.0**-30)
  assert (found * places**2).sum() == pytest.approx(deviation**2, rel=1e-4)


def test_draws_are_of_the_table_and_their_sum_is_of_the_total_variance():
  noise = discrete.Noise(total=2.0, least=4)
  levels = 31
  each = noise.deviation(levels)
  assert each**2 * noise.least == pytest.approx((2.0 * levels) ** 2)
  drawn = np.asarray(discrete.skellam(KEY, (4, 20000), each))
  total = drawn.sum(axis=0)
  assert total.std() == pytest.approx(2.0 * levels, rel=0.03)
  assert abs(total.mean()) < 5 * total.std() / 20000**0.5
  half = each**2 / 2
  at = np.arange(-40, 41)
  found = np.searchsorted(np.sort(drawn.ravel()), at, side='right')
  wanted = np.cumsum(stats.skellam.pmf(np.arange(-400, 41), half, half))[-81:]
  np.testing.assert_allclose(found / drawn.size, wanted, atol=0.01)


QUIET = discrete.Noise(total=1e-4, least=1)  # whose draws are all zero


def norms(values, levels, keys):
  def one(key):
    found, _ = discrete.whole(values, levels, key, QUIET)
    return jnp.sqrt(tree.squared_norm(found))

  return np.asarray(jax.jit(jax.vmap(one))(keys))


@pytest.mark.parametrize('worst', [0.5, 1.0, 1e3, float('nan'), float('inf')])
def test_no_message_has_a_larger_norm_than_its_noise_hides(worst):
  values = {'a': worst * jax.random.normal(KEY, (400,)), 'b': jnp.ones(3)}
  for levels in (127, 31):
    found = norms(values, levels, jax.random.split(KEY, 200))
    assert (found <= levels).all()
    if np.isfinite(worst):
      assert (found > 0.6 * levels).all()


def test_rounding_is_without_bias_where_it_fits():
  values = jnp.full(64, 0.01)
  keys = jax.random.split(KEY, 4000)

  def one(key):
    return discrete.whole(values, 127, key, QUIET)[0]

  found = np.asarray(jax.jit(jax.vmap(one))(keys)).mean()
  # Scaled as far as rounding may add to a message.
  wanted = 0.01 * discrete.inside(64, 127)
  assert found == pytest.approx(wanted, rel=0.01)


def test_what_noise_and_rounding_cannot_do_is_refused():
  with pytest.raises(ValueError, match='too wide for its table.*Secure.bits'):
    discrete.check(discrete.Noise(1.0, 4), 2**15 - 1)
  with pytest.raises(ValueError, match='would add more'):
    discrete.inside(10**6, 127)
  bits = 12
  assert discrete.inside(10**6, 2 ** (bits - 1) - 1) > 2**10
