"""RaFFM: salient channels, parts of the width, and who held what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import general, raffm
from fedms_jax.core.types import Plan
from fedms_jax.models import pretrained
from fedms_jax.systems.ledger import Meter
from tests import world
from tests.algorithms import cohort
from tests.algorithms.two_models_test import noisy

HEADS, EACH, NEURONS = 2, 4, 12
HALF = raffm.Width(0.5, 0.5)
WHOLE = raffm.Width()
PLANS = [Plan(world.DENSE.active, 0, width) for width in (WHOLE, HALF)]


@functools.cache
def base():
  return noisy(world.start().frozen['base'], 3, 0.2)


@functools.cache
def method():
  algorithm = raffm.raffm(world.setting(), HEADS, lambda round, client: HALF)
  before = world.start()
  before = before._replace(frozen=before.frozen | {'base': base()})
  return algorithm, algorithm.begin(jax.random.key(2), before)


def encoded(blocks):
  images = world.columns()['inputs'][:6]
  return pretrained.encode(
    world.backbone(), base() | {'blocks': blocks}, images
  )


def test_the_order_of_channels_changes_no_feature():
  """Of queries and keys, and of an MLP; they are by salience then."""
  blocks = raffm.ordered(base()['blocks'], HEADS)
  assert np.any(
    blocks['attn']['q']['kernel'] != base()['blocks']['attn']['q']['kernel']
  )
  np.testing.assert_allclose(
    encoded(blocks), encoded(base()['blocks']), atol=1e-5
  )
  for size in raffm.salience(blocks, HEADS):
    assert (np.diff(size, axis=-1) <= 0).all()


def test_a_part_is_the_first_channels_in_that_order():
  blocks = base()['blocks']
  mine = raffm.part(blocks, raffm.held(blocks, HEADS, HALF))
  sorted_ = raffm.ordered(blocks, HEADS)
  first = jnp.tile(jnp.arange(EACH) < EACH // 2, HEADS)
  first = jnp.broadcast_to(first, (world.BLOCKS, HEADS * EACH))
  some = jnp.broadcast_to(
    jnp.arange(NEURONS) < NEURONS // 2, (world.BLOCKS, NEURONS)
  )
  masks = some.astype(jnp.float32), first.astype(jnp.float32)
  np.testing.assert_allclose(
    encoded(mine), encoded(raffm.part(sorted_, masks)), atol=1e-5
  )
  assert np.abs(encoded(mine) - encoded(blocks)).max() > 0.01


def one_round(plans, weights=None):
  algorithm, roles = method()
  rows = world.cohort_rows(clients=2, steps=2)
  found = cohort.one_round(algorithm, roles, rows, plans, weights=weights)
  return found.roles.shared, roles.shared, rows


@pytest.mark.slow
def test_of_the_whole_width_it_is_fedavg():
  found, _, rows = one_round([PLANS[0]] * 2)
  plain = general.fedavg(world.setting())
  expected = cohort.one_round(plain, method()[1], rows, world.DENSE)
  world.close(found, expected.roles.shared)


def test_a_channel_is_the_mean_of_those_who_had_it():
  """One client has all of it, and one a half: what the latter lacks is the
  former's, as it is, and the rest is the mean of both."""
  both, before, rows = one_round(PLANS, np.ones(2, np.float32))
  alone = [
    one_round(PLANS, np.array(w, np.float32))[0] for w in ([1, 0], [0, 1])
  ]
  neurons, channels = (
    np.asarray(x) > 0 for x in raffm.held(before['blocks'], HEADS, HALF)
  )
  for layer, name, there in (
    ('mlp', 'up', neurons), ('attn', 'q', channels), ('attn', 'k', channels),
  ):  # fmt: skip
    old, mean, large, small = (
      np.asarray(x['blocks'][layer][name]['kernel'])
      for x in (before, both, *alone)
    )
    there = np.broadcast_to(there[:, None], old.shape)
    np.testing.assert_array_equal(small[~there], old[~there])
    assert (small[there] != old[there]).mean() > 0.9
    np.testing.assert_allclose(mean[~there], large[~there], atol=1e-6)
    np.testing.assert_allclose(
      mean[there], (large + small)[there] / 2, atol=1e-5
    )


def test_what_a_client_lacks_is_nothing_to_it():
  """No step of it depends on weights that it does not have."""
  algorithm, roles = method()
  blocks = roles.shared['blocks']
  _, channels = raffm.held(blocks, HEADS, HALF)
  attn = dict(blocks['attn'])
  for name in ('q', 'k'):
    bias = attn[name]['bias'] + 5.0 * (1 - channels)
    attn[name] = attn[name] | {'bias': bias}
  changed = blocks | {'attn': attn}
  rows = world.cohort_rows(clients=1, steps=2)
  heads = []
  for own in (blocks, changed):
    moved = roles._replace(shared=roles.shared | {'blocks': own})
    found = cohort.one_round(algorithm, moved, rows, PLANS[1])
    heads.append(found.roles.shared['head'])
  world.same(*heads)


@pytest.mark.parametrize('width', [WHOLE, HALF])
def test_a_client_pays_for_its_part(width):
  algorithm, roles = method()
  plain = general.fedavg(world.setting())
  entry = dict(
    clients=1, newcomers=0, cohort=1, examples=1.0, steps=1.0, derived=0.0,
    scope='step',
  )  # fmt: skip
  plan = Plan(world.DENSE.active, 0, width)
  mine = Meter(algorithm, roles, batch=4, slots=0).group(
    plan, world.DENSE.active, **entry
  )
  whole = Meter(plain, roles, batch=4, slots=0).group(
    world.DENSE, world.DENSE.active, **entry
  )
  part = 0 if width == WHOLE else 1
  fewer = part * 2 * world.WIDTH * (NEURONS // 2 + HEADS * EACH // 2)
  assert whole.bytes_up - mine.bytes_up == 4 * fewer * world.BLOCKS
  # Forward, and backward of inputs and of weights.
  flops = 3 * 2 * world.backbone().cost.tokens * fewer * world.BLOCKS
  np.testing.assert_allclose(whole.client_flops - mine.client_flops, flops)
