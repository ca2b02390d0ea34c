"""Baselines at large: FedProx, FedAvg of all weights, the linear probe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.algorithms import fedms, full, general
from tests import world
from tests.algorithms import cohort

PLAN = world.TOP
ROWS = world.cohort_rows(clients=2)


@functools.cache
def method(name):
  return {
    'fedit': lambda s: fedms.global_stage(s),
    'fedprox 0': lambda s: general.fedprox(s, 0.0),
    'fedprox 2': lambda s: general.fedprox(s, 2.0),
    'fedavg': general.fedavg,
    'linear_probe': general.probe,
  }[name](world.setting())


def after(name, how='vmap', rows=ROWS):
  roles = jax.jit(method(name).begin)(jax.random.key(2), world.start())
  return roles, cohort.one_round(method(name), roles, rows, PLAN, how=how)[0]


def test_without_a_pull_fedprox_is_fedavg_of_lora():
  world.close(after('fedprox 0')[1].shared, after('fedit')[1].shared)


def test_a_pull_of_one_over_the_rate_forgets_the_step_before():
  """w_1 - rate (g(w_1) + (w_1 - w_t) / rate) = w_t - rate g(w_1)."""
  rows = world.cohort_rows(clients=1)
  start, end = after('fedprox 2', rows=rows)

  def free(roles, step):
    one = rows[:, step : step + 1]
    return cohort.one_round(method('fedit'), roles, one, PLAN)[0]

  first = free(start, 0)
  second = free(first, 1)
  expected = jax.tree.map(
    lambda w, a, b: w + (b - a), start.shared, first.shared, second.shared
  )
  world.close(end.shared, expected)


@pytest.mark.parametrize(('mu', 'end'), [(0.0, 1.0), (1.0, 0.5), (99.0, 0.01)])
def test_the_proximal_term_is_that_of_the_paper(mu, end):
  """The minimum of (w - 1)^2 / 2 + mu / 2 w^2, from w_t = 0."""
  optimizer = optax.chain(general.proximal(mu), optax.sgd(0.01))
  w = jnp.zeros(())
  state = optimizer.init(w)

  def step(carry, _):
    w, state = carry
    updates, state = optimizer.update(w - 1.0, state, w)
    return (w + updates, state), None

  (w, _), _ = jax.lax.scan(step, (w, state), None, length=2000)
  assert float(w) == pytest.approx(end, abs=1e-4)


@pytest.mark.parametrize('name', ['fedavg', 'linear_probe', 'fedprox 2'])
def test_clients_at_once_and_one_by_one_agree(name):
  wide, slow = after(name)[1], after(name, 'loop')[1]
  world.close(wide, slow)


def test_fedavg_trains_all_weights_and_the_probe_the_head_alone():
  start, end = after('fedavg')
  assert set(end.shared) == {'stem', 'blocks', 'final', 'head'}
  for key in ('stem', 'head'):
    moved = jax.tree.map(
      lambda x, y: bool((x != y).any()), start.shared[key], end.shared[key]
    )
    assert any(jax.tree.leaves(moved))
  world.same(end.frozen['base'], world.start().frozen['base'])
  start, end = after('linear_probe')
  assert set(end.shared) == {'head'}
  assert (end.shared['head']['kernel'] != start.shared['head']['kernel']).any()


@pytest.mark.parametrize('name', ['fedavg', 'linear_probe'])
def test_they_are_evaluated_beside_the_model_that_they_start_from(name):
  start, end = after(name)
  algorithm = method(name)
  batch = {'inputs': world.columns()['inputs'][:5]}

  @jax.jit
  def logits(roles):
    found = batch | algorithm.columns(roles, batch, world.DENSE)
    return algorithm.predict(roles, found, world.DENSE).logits

  first, now = logits(start), logits(end)
  assert set(now) == {'pretrained', 'global'}
  world.close(now['pretrained'], first['global'])
  assert np.abs(now['global'] - now['pretrained']).max() > 1e-3


def test_full_training_ahead_of_a_run_keeps_no_second_model():
  roles = jax.eval_shape(
    full.full_model(world.setting()).begin, jax.random.key(0), world.start()
  )
  assert roles.frozen == {}
