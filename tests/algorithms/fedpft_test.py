"""FedPFT: a model of narrower MLPs, what the server makes of it, and LoRA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.algorithms import adapted, fedpft, sub_model
from fedms_jax.core import columns, reduction
from fedms_jax.core.types import Roles
from fedms_jax.models import pretrained, transformer, vit
from fedms_jax.systems.ledger import Meter
from tests import world
from tests.algorithms import cohort
from tests.algorithms.two_models_test import noisy

NEURONS = 12
CHOICE = sub_model.Choice(0.5, 1, 1.0, 1, 2, 8, 0.01)
WHOLE = CHOICE._replace(share=1.0, interval=0)


@functools.cache
def base():
  """A base whose neurons have biases, too."""
  return noisy(world.start().frozen['base'], 3, 0.2)


@functools.cache
def method(choice=CHOICE):
  """(algorithm, roles, memory) of the federated rounds, LoRA trained."""
  setting = world.setting()
  before = adapted.start(base(), world.start().frozen['head'])

  @jax.jit
  def began(before):
    first = fedpft.compressed(setting, choice).begin(jax.random.key(2), before)
    return fedpft.tuned(setting, choice).begin(jax.random.key(3), first)

  algorithm, roles = fedpft.tuned(setting, choice), began(before)
  roles = roles._replace(shared=noisy(roles.shared, 1))
  return algorithm, *reduction.begin(algorithm, roles, 0)[:2]


def batch(rows=8, raw=None):
  algorithm, roles, _ = method()
  found = columns.take(raw or world.table(), jnp.arange(rows))
  return columns.complete(algorithm, roles, found, world.DENSE)


def held():
  return method()[1].frozen['start']['kept']


def test_neurons_of_the_largest_weights_stay_but_at_the_ends():
  mlp = jax.tree.map(np.asarray, base()['blocks']['mlp'])
  wanted = np.ones((world.BLOCKS, NEURONS))
  both = np.concatenate(
    [mlp['up']['kernel'][1], mlp['down']['kernel'][1].T], axis=0
  )
  order = np.argsort(-np.linalg.norm(both, axis=0))
  wanted[1, order[6:]] = 0
  np.testing.assert_array_equal(held(), wanted)


def test_the_sub_model_is_one_of_narrower_mlps():
  """In arrays of the whole size it gives what small ones give."""
  everywhere = CHOICE._replace(ends=0)
  mask = sub_model.kept(base()['blocks'], everywhere)
  found = sub_model.neurons(base()['blocks'], mask)
  large = sub_model.smaller(base(), found, mask)
  places = np.argsort(-np.asarray(mask), axis=1, kind='stable')[:, :6]
  mlp = base()['blocks']['mlp']

  def taken(x, axis):
    shape = [1] * x.ndim
    shape[0], shape[axis] = places.shape
    return np.take_along_axis(np.asarray(x), places.reshape(shape), axis)

  up = {
    'kernel': taken(mlp['up']['kernel'], 2),
    'bias': taken(mlp['up']['bias'], 1),
  }
  down = mlp['down'] | {'kernel': taken(mlp['down']['kernel'], 1)}
  small = base() | {
    'blocks': base()['blocks'] | {'mlp': {'up': up, 'down': down}}
  }
  shape = transformer.TransformerConfig(
    blocks=world.BLOCKS, width=world.WIDTH, heads=2, mlp_width=6
  )
  narrow = vit.backbone(
    vit.VitConfig(shape, image=8, channels=1, patch=4, classes=world.CLASSES)
  )
  images = world.columns()['inputs'][:6]
  np.testing.assert_allclose(
    pretrained.encode(world.backbone(), large, images),
    pretrained.encode(narrow, small, images),
    atol=1e-5,
  )


@pytest.mark.slow
def test_with_all_neurons_it_is_fedavg_of_lora():
  algorithm, roles, memory = method(WHOLE)
  plain, start = world.first_stage()
  rows = world.cohort_rows()
  found = cohort.one_round(algorithm, roles, rows, world.DENSE, memory=memory)
  frozen = start.frozen | {'base': base()}
  start = Roles(frozen, roles.shared, {})
  expected = cohort.one_round(plain, start, rows, world.DENSE)
  world.close(found.roles.shared, expected.roles.shared)


@pytest.mark.slow
def test_lora_of_the_sub_model_is_that_of_the_whole():
  """`global` is the base with it, `emulator` the sub-model; they differ."""
  algorithm, roles, _ = method()
  found = algorithm.predict(roles, batch(), world.DENSE).logits
  plain, start = world.first_stage()
  whole = Roles(start.frozen | {'base': base()}, roles.shared, {})
  rows = columns.take(world.table(), jnp.arange(8))
  rows = columns.complete(plain, whole, rows, world.DENSE)
  expected = plain.predict(whole, rows, world.DENSE).logits['global']
  np.testing.assert_allclose(found['global'], expected, atol=1e-4)
  assert np.abs(found['emulator'] - expected).max() > 0.01


def test_neurons_at_rest_are_counted():
  """Of a neuron that no input reaches its bias says whether it rests; rows
  that are padding, and neurons that are not there, do not count for it."""
  _, roles, _ = method()
  bias = np.zeros((world.BLOCKS, NEURONS), np.float32)
  bias[:, :5], bias[:, 5:] = 1.0, -1.0
  neurons = roles.frozen['start']['neurons']
  up = {'kernel': 0 * neurons['up']['kernel'], 'bias': jnp.asarray(bias)}
  server = {'neurons': neurons | {'up': up}}
  roles = roles._replace(frozen=roles.frozen | {'server': server})
  some = batch()
  some['mask'] = jnp.arange(8) < 3
  found = jax.jit(functools.partial(fedpft.at_rest, world.setting()))(
    roles, some
  )
  tokens = some['embedded'].shape[1]
  assert found['seen'] == 3 * tokens
  rests = np.asarray(held() * bias) <= 0
  np.testing.assert_array_equal(found['counts'], 3 * tokens * rests)


def test_the_half_that_rests_least_is_left_alone():
  rest = jnp.array([[0.9, 0.1, 0.5, 0.2], [0.1, 0.2, 0.3, 0.4]])
  there = jnp.array([[1.0, 1, 1, 1], [0, 1, 1, 0]])
  found = sub_model.at_work(rest, there)
  assert found.tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]


def measured(choice, neurons, mask=None):
  _, roles, _ = method()
  mask = held() if mask is None else mask
  small = sub_model.smaller(base(), neurons, mask)
  lora = roles.shared['blocks']
  return sub_model.missed(
    world.setting().backbone, base(), small, lora, batch(), choice
  )[0]


@pytest.mark.slow
def test_what_is_missed():
  """Nothing by the whole model; all of the product by no neurons at all."""
  ones = jnp.ones_like(held())
  own = sub_model.neurons(base()['blocks'], ones)
  assert measured(CHOICE, own, ones) < 1e-10
  with_it, without = (
    measured(CHOICE._replace(product=p), own, 0 * ones) for p in (2.0, 0.0)
  )
  np.testing.assert_allclose(with_it - without, 2.0, rtol=1e-4)
  assert 0 < without < 2


def test_the_server_learns_and_leaves_who_works():
  _, roles, memory = method()
  choice = CHOICE._replace(steps=8, batch=8)
  public = jax.tree.map(lambda x: x[:64], world.table())
  public |= {'mask': jnp.ones(64, bool)}
  fixed = held() * (jnp.arange(NEURONS) % 2)[None]
  before = memory['neurons']
  after = jax.jit(
    lambda found: sub_model.aligned(
      world.setting().backbone, base(), found, roles.shared['blocks'], public,
      choice, held(), fixed,
    )
  )(before)  # fmt: skip
  assert measured(CHOICE, after) < 0.9 * measured(CHOICE, before)
  moved = np.any(after['up']['kernel'] != before['up']['kernel'], axis=1)
  free = np.asarray(held() * (1 - fixed)) > 0
  np.testing.assert_array_equal(moved[1], free[1])
  world.same(
    sub_model.masked(after, 1 - held()), sub_model.masked(before, 1 - held())
  )


@pytest.mark.slow
@pytest.mark.parametrize(('interval', 'weight'), [(1, 1), (2, 1), (1, 0)])
def test_it_does_so_when_it_is_time_and_somebody_came(interval, weight):
  choice = CHOICE._replace(interval=interval)
  algorithm, roles, memory = method(choice)
  rows = world.cohort_rows(clients=2, steps=1)
  found = cohort.one_round(
    algorithm, roles, rows, world.DENSE, memory=memory,
    weights=np.full(2, weight, np.float32),
  )  # fmt: skip
  gap = np.abs(
    found.memory['neurons']['up']['kernel'] - memory['neurons']['up']['kernel']
  )
  due = interval == 1 and weight == 1
  assert bool(gap[1].max() > 0) == due
  seen = found.totals.extras['rest']['seen']
  assert bool(seen > 0) == due


def test_a_client_pays_for_the_neurons_that_it_has():
  algorithm, roles, _ = method()
  plain, start = world.first_stage()
  spared = 2 * world.backbone().cost.tokens * 6 * 2 * world.WIDTH / 3
  block = world.backbone().cost.block
  np.testing.assert_allclose(algorithm.backbone.cost.block, block - spared)
  meter = Meter(algorithm, roles, batch=4, slots=0)
  whole = Meter(plain, start, batch=4, slots=0)
  up, down = meter.traffic(world.DENSE, world.DENSE.active, 2)
  lora, _ = whole.traffic(world.DENSE, world.DENSE.active, 2)
  assert up - lora == 4 * (6 + 1)
  assert down - lora == 4 * 6 * (2 * world.WIDTH + 1)
  shapes, plan = algorithm.held(jax.eval_shape(lambda x: x, roles), world.DENSE)
  bytes_of = sum(
    x.size * 4 for x in jax.tree.leaves(shapes.frozen['base']['blocks'])
  )
  all_bytes = sum(x.size * 4 for x in jax.tree.leaves(base()['blocks']))
  assert all_bytes - bytes_of == 4 * 6 * (2 * world.WIDTH + 1)
  assert plan == world.DENSE
