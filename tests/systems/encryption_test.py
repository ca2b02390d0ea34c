"""CKKS by first principles: sizes, operations, radio, and the best choice."""

import math

import numpy as np
import pytest

from fedms_jax.systems import encryption
from fedms_jax.systems.encryption import Load, Processor, Radio, Ring

LOAD = Load(devices=4, values=50_000, products=10**6)
RADIO = Radio()


def test_a_ciphertext_is_27_times_its_values_in_the_ring_of_8192():
  ring = Ring(8192, 218)
  assert ring.slots == 4096 and ring.nbytes == 2 * 8192 * 218 / 8
  np.testing.assert_allclose(ring.expansion, 27.25)
  np.testing.assert_allclose(ring.expansion, 4 * 218 / 32)
  assert ring.security == 128 and ring.limbs == 4
  assert [ring.ciphertexts(x) for x in (1, 4096, 4097)] == [1, 1, 2]
  log = math.log2(8192)
  assert ring.encrypting() == 2 * 4 * 8192 * log
  assert ring.adding() == 8192 * 4 and ring.multiplying() == 8192 * 16 * log


def test_depth_decides_which_rings_there_are():
  found = {d: [r.degree for r in encryption.rings(d)] for d in (1, 2, 3, 7, 19)}
  assert encryption.modulus(2) == 200
  assert found[2] == [8192, 16384, 32768]
  assert found[3] == found[7] == [16384, 32768] and found[19] == [32768]
  with pytest.raises(ValueError, match='allowed: at most 19'):
    encryption.rings(20)
  secure = [ring.security for ring in encryption.rings(2)]
  assert secure[0] >= 128 and secure == sorted(secure)


def test_a_rate_is_shannons_and_a_band_is_worth_less_the_more_there_is():
  radio = Radio(band=1e6, power=0.2, gain=1e-9, noise=4e-21)
  expected = 1e6 * math.log2(1 + 1e-9 * 0.2 / (4e-21 * 1e6))
  np.testing.assert_allclose(encryption.rate(radio, 1e6), expected)
  one, two = (encryption.rate(radio, b) for b in (1e6, 2e6))
  assert one < two < 2 * one


def energy(bits, gains, bands):
  return sum(
    RADIO.power * d / encryption.rate(RADIO._replace(gain=g), b)
    for d, g, b in zip(bits, gains, bands, strict=True)
  )


def test_shares_of_the_band_are_the_best_there_are():
  bits, gains = [1e8, 1e8, 4e8], [1e-10, 1e-12, 1e-10]
  bands = encryption.shared(RADIO, bits, gains)
  np.testing.assert_allclose(bands.sum(), RADIO.band)
  assert bands[1] > bands[0] and bands[2] > bands[0]
  least = energy(bits, gains, bands)
  rng = np.random.default_rng(0)
  for _ in range(200):
    other = bands * np.exp(0.3 * rng.normal(size=3))
    other *= RADIO.band / other.sum()
    assert energy(bits, gains, other) > least * (1 - 1e-6)
  even = encryption.shared(RADIO, [1e8] * 4, [1e-10] * 4)
  np.testing.assert_allclose(even, RADIO.band / 4, rtol=1e-6)


def test_a_cost_by_hand():
  ring, device = Ring(8192, 218), Processor(clock=1e9, kappa=1e-28)
  server = Processor(clock=2e9, kappa=1e-28)
  found = encryption.cost(ring, LOAD, RADIO, device, server)
  assert found.ciphertexts == 13 and found.sent == 13 * ring.nbytes
  cycles = 13 * ring.encrypting()
  np.testing.assert_allclose(found.encrypting, 4 * 1e-28 * 1e18 * cycles)
  seconds = 8 * found.sent / encryption.rate(RADIO, RADIO.band / 4)
  np.testing.assert_allclose(found.seconds, (cycles / 1e9, seconds))
  np.testing.assert_allclose(found.sending, 4 * 0.1 * seconds)
  work = 245 * (ring.multiplying() + ring.adding())
  np.testing.assert_allclose(found.serving, 4 * 1e-28 * 4e18 * work)


def test_the_more_security_is_worth_the_larger_the_ring():
  costs = [
    encryption.cost(ring, LOAD, RADIO, Processor(), Processor())
    for ring in encryption.rings(2)
  ]
  chosen = [encryption.best(costs, w).ring.degree for w in (0, 1e-3, 1e3)]
  assert chosen == sorted(chosen) and chosen[0] == 8192
  assert chosen[-1] == 32768
