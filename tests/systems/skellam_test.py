"""What sums with discrete noise tell: known values, the continuous limit."""

import math

import numpy as np
import pytest

from fedms_jax.systems import privacy, skellam

rdp = pytest.importorskip('dp_accounting.rdp')
DELTA, D = 1e-5, 2**14


def of(scale, two, one):
  """The epsilon of one sum whose noise has the deviation `scale`."""
  found = skellam.divergences(two, one, scale**2)
  return rdp.compute_epsilon(list(skellam.ORDERS), list(found), DELTA)[0]


@pytest.mark.parametrize(
  'step, published', [(1e-3, 4.7656), (1e-2, 5.8177), (1e-1, 53.3)]
)
def test_it_is_what_is_published_for_a_rounded_vector(step, published):
  """Of 100 clients with a tenth of the noise each, clipped to 1, 2^14 numbers;
  the bound of the rounded norm is that of arXiv 2102.06387."""
  s = 1 / step
  norm = math.sqrt(s**2 + D / 4 + s + math.sqrt(D) / 2)
  norm = min(norm, s + math.sqrt(D))
  found = of(s, norm, norm * min(math.sqrt(D), norm))
  assert found == pytest.approx(published, rel=0.02)


def entry(noise, levels, times=1):
  event = {'kind': 'skellam', 'noise': noise, 'levels': levels}
  return privacy.entry(0, event, times)


def test_small_steps_give_the_epsilon_of_the_gaussian():
  """Of whole orders; of others in between, a little less is known."""
  gaussian = privacy.entry(0, {'kind': 'gaussian', 'noise': 1.0}, 1)
  wanted = privacy.epsilon([gaussian], DELTA, 'rdp')
  fine = privacy.epsilon([entry(1.0, 2047)], DELTA, 'rdp')
  coarse = privacy.epsilon([entry(1.0, 3)], DELTA, 'rdp')
  assert fine == pytest.approx(4.7527, abs=1e-3)
  assert wanted <= fine < wanted * 1.01 and coarse > 1.05 * wanted


def test_rounds_add_up_and_noise_is_found_for_an_epsilon():
  few, many = (
    privacy.epsilon([entry(4.0, 2047, n)], DELTA, 'rdp') for n in (3, 12)
  )
  assert few < many
  both = [entry(4.0, 2047, 1), entry(4.0, 2047, 2)]
  assert privacy.epsilon(both, DELTA, 'rdp') == few
  found = privacy.noise_for(3.0, DELTA, lambda z: [entry(z, 2047, 5)], 'rdp')
  assert 2.98 < privacy.epsilon([entry(found, 2047, 5)], DELTA, 'rdp') <= 3.0
  mixed = [entry(1.0, 7), privacy.entry(0, {'kind': 'gaussian', 'noise': 1}, 1)]
  with pytest.raises(ValueError, match='not added up'):
    privacy.epsilon(mixed, DELTA, 'rdp')
  assert np.isinf(privacy.epsilon([entry(0.0, 7)], DELTA, 'rdp'))
