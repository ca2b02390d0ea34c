"""The accountant: published values, the ledger, and what samplers choose."""

import json
import math

import numpy as np
import pytest

from fedms_jax.data import sampling
from fedms_jax.systems import privacy

pytest.importorskip('dp_accounting')
DELTA = 1e-5


def poisson(z, q, rounds):
  event = {'kind': 'poisson', 'chance': q, 'noise': z}
  if q == 1:
    event = {'kind': 'gaussian', 'noise': z}
  return [privacy.entry(0, event, rounds)]


def capped(clients, cap, q=0.01):
  event = {
    'kind': 'truncated', 'chance': q, 'clients': clients, 'cap': cap,
    'noise': 1.0,
  }  # fmt: skip
  return [privacy.entry(0, event, 1000)]


# z, q, rounds, delta, by distributions of the loss, by Renyi divergences
KNOWN = [
  (1.0, 0.01, 1000, DELTA, 1.82824, 2.10137),
  (4.0, 0.001, 1000, DELTA, 0.02187, 0.04877),
  (1.0, 1.0, 1, DELTA, 4.37718, 4.72851),
  (2.0, 0.1, 100, DELTA, 2.33740, 2.58057),
  (3.0, 0.1, 512, 1e-6, 3.7697, None),
]
MORE = [
  (1.0, 0.01, 10000, DELTA, 6.18774, 6.71276),
  (0.7, 0.01, 1000, DELTA, 4.61829, 5.42326),
  (0.5, 0.01, 1000, DELTA, 13.36083, 15.47213),
  (1.1, 256 / 60000, 14100, DELTA, 2.38521, 2.60034),
  (1.0, 0.1, 100, DELTA, 7.0466, 7.9039),
  (1.0, 1.0, 6, DELTA, 12.8707, None),
  (1.0, 1.0, 10, DELTA, 17.8566, None),
  (1.0, 1.0, 100, DELTA, 91.817, None),
]


def check(z, q, rounds, delta, pld, rdp):
  ledger = poisson(z, q, rounds)
  # Above 20 the grid of the losses is coarser, and the bound a little looser.
  found = privacy.epsilon(ledger, delta)
  assert found == pytest.approx(pld, abs=1e-4 if pld < 15 else 2e-2)
  by_rdp = privacy.epsilon(ledger, delta, 'rdp')
  if rdp is not None:
    assert by_rdp == pytest.approx(rdp, abs=1e-4)
  assert found <= by_rdp + 1e-3


@pytest.mark.parametrize('known', KNOWN)
def test_published_values(known):
  check(*known)


@pytest.mark.slow
@pytest.mark.parametrize('known', MORE)
def test_more_published_values(known):
  check(*known)


@pytest.mark.slow
def test_a_cap_of_six_deviations_costs_nothing_and_a_tight_one_much():
  free = privacy.epsilon(poisson(1.0, 0.01, 1000), DELTA)
  assert privacy.epsilon(capped(10_000, 200), DELTA) == pytest.approx(
    free, abs=1e-3
  )
  assert privacy.epsilon(capped(10_000, 130), DELTA) == pytest.approx(
    3.684, abs=1e-3
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('clients', 'cap', 'known'),
  [(10_000, 150, 1.8305), (10_000, 120, 5.297), (1000, 40, 1.8282),
   (1000, 30, 1.8285), (1000, 25, 1.8845)],
)  # fmt: skip
def test_caps_cost_what_is_known(clients, cap, known):
  found = privacy.epsilon(capped(clients, cap), DELTA)
  assert found == pytest.approx(known, abs=1e-3)


def of(kind, z=1.0, clients=100_000, size=1000, groups=1, cap=0):
  how = sampling.sampling(kind, clients, size, cap, groups)
  return privacy.event(how, z), privacy.neighbors(how)


def test_the_sampler_chooses_the_event():
  event, who = of('poisson')
  assert event['kind'] == 'truncated' and event['noise'] == 1.0
  assert event['cap'] == 1189 and event['chance'] == 0.01
  assert who == 'one client added or removed'
  event, who = of('fixed')  # twice as sensitive: one client for another
  assert event == {'kind': 'poisson', 'chance': 0.01, 'noise': 0.5}
  assert 'replaced' in who
  event, who = of('fixed', size=100_000)
  assert event == {'kind': 'gaussian', 'noise': 1.0} and 'added' in who
  event, who = of('cyclic', groups=10)
  assert event['chance'] == 0.1 and event['clients'] == 10_000
  assert 'zeroed' in who
  event, who = of('min_separation', groups=10)
  assert event == {'kind': 'gaussian', 'noise': 1.0}


@pytest.mark.slow
def test_a_fixed_cohort_costs_the_larger_epsilon():
  """13.36 against 1.83, as Poisson sampling at half of the noise."""
  spent = [privacy.entry(0, of('fixed')[0], 1000)]
  assert privacy.epsilon(spent, DELTA) == pytest.approx(13.3608, abs=1e-3)


def test_the_ledger_groups_rounds_and_is_plain_json():
  event = of('min_separation', groups=3)[0]
  ledger = []
  for number in range(7):
    line = privacy.entry(number // 5, event, 1, 3)
    ledger = json.loads(json.dumps(privacy.spend(ledger, line)))
  assert [(x['stage'], x['rounds']) for x in ledger] == [(0, 5), (1, 2)]
  # A client may be in ceil(5 / 3) and ceil(2 / 3) of them.
  same = [privacy.entry(0, event, 3)]
  assert privacy.epsilon(ledger, DELTA) == privacy.epsilon(same, DELTA)


def test_epsilon_grows_with_rounds_and_chance_and_falls_with_noise():
  def found(z=2.0, q=0.1, rounds=20):
    return privacy.epsilon(poisson(z, q, rounds), DELTA, 'rdp')

  assert found(rounds=40) > found() > found(rounds=10) > 0
  assert found(q=0.2) > found() > found(q=0.05)
  assert found(z=1.5) > found() > found(z=3.0)
  assert found(rounds=0) == 0.0
  assert found(z=0.0) == math.inf


def test_two_releases_of_a_round_are_one_of_less_noise():
  """1 / z^2 of Gaussians adds up."""
  parts = [privacy.entry(i, {'kind': 'gaussian', 'noise': z}, 1)
           for i, z in enumerate((1.005038, 10.0))]  # fmt: skip
  one = [privacy.entry(0, {'kind': 'gaussian', 'noise': 1.0}, 1)]
  assert privacy.epsilon(parts, DELTA) == pytest.approx(
    privacy.epsilon(one, DELTA), abs=1e-4
  )


def test_noise_is_found_for_an_epsilon():
  def ledger(z):
    return poisson(z, 1.0, 20)

  z = privacy.noise_for(2.0, DELTA, ledger)
  assert 1.9 < privacy.epsilon(ledger(z), DELTA) <= 2.0
  assert privacy.epsilon(ledger(z * 0.998), DELTA) > 2.0
  looser = privacy.noise_for(2.0, DELTA, ledger, 'rdp')
  assert looser > z


@pytest.mark.slow
def test_published_noise_for_an_epsilon():
  def ledger(z):
    return poisson(z, 0.01, 1000)

  found = privacy.noise_for(2.0, DELTA, ledger)
  assert found == pytest.approx(0.95910, abs=3e-4)
  found = privacy.noise_for(2.0, DELTA, ledger, 'rdp')
  assert found == pytest.approx(1.02229, abs=1e-3)


def test_a_delta_that_may_tell_a_client_is_refused():
  privacy.check_delta(privacy.usual_delta(30), 30)
  for delta in (1 / 30, 0.5):
    with pytest.raises(ValueError, match='`delta`=.*under 1/30'):
      privacy.check_delta(delta, 30)


def test_a_noisy_mean_is_bounded_and_repeats_itself():
  sums = np.array([[3.0, 4.0], [5.0, 1.0], [np.nan, 0.0], [-2.0, 1.0]])
  assert privacy.noisy_mean(sums, 0.0, 4.0, (0, 0, 0)) == 1.75 / 4
  words = (3, 1, 2)
  found = privacy.noisy_mean(sums, 1.0, 4.0, words)
  assert found == privacy.noisy_mean(sums, 1.0, 4.0, words) != 1.75 / 4
  none = [privacy.noisy_mean(np.zeros((0, 2)), 2.0, 4.0, (0, 0, t))
          for t in range(2000)]  # fmt: skip
  assert np.std(none) == pytest.approx(0.5, rel=0.1)
