"""Methods on a network of one's own obey the laws of the others."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import adapted, networks
from fedms_jax.core import reduction, tree
from fedms_jax.core.types import Plan
from fedms_jax.models import flax_network, network, tasks
from fedms_jax.server import averaged
from tests import family_test, world

PLAN = Plan((True,), 0)
SHAPE = ((8, 8, 1), 'float32')
SGD, PLAIN = optax.sgd(0.1), optax.sgd(1.0)
SOME = family_test.table()['inputs'][family_test.ROWS[0].ravel()]
TASK, MEAN = tasks.classification(), averaged.mean()


class Net(nn.Module):
  """Its first layer is used twice, so that its LoRA must be, too."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(6, name='first')(x.reshape(len(x), -1) / 255)
    twice = nn.Dense(6, name='again')
    x = twice(jnp.tanh(twice(x)))
    return nn.Dense(world.CLASSES, name='last')(x)


def net(**patterns):
  return flax_network.of_flax(Net(), head='last', **patterns)


def setting(own, optimizer=SGD):
  model = network.backbone(own, *SHAPE)
  spec = lora.Spec(2, 4.0, ())
  return adapted.Setting(model, TASK, optimizer, PLAIN, MEAN, spec)


MAKERS = {
  'fedavg': networks.fedavg,
  'fedprox': lambda s, form: networks.fedprox(s, form, 0.5),
  'scaffold': lambda s, form: networks.scaffold(s, form, 8),
  'ditto': lambda s, form: networks.ditto(s, form, 0.5),
  'fedper': networks.fedper,
  'fedrep': lambda s, form: networks.fedrep(s, form, 0.5),
  'local': networks.local,
}


@functools.cache
def case(name, pattern=''):
  own = net(lora=pattern)
  algorithm = MAKERS[name](setting(own), network.form(own, *SHAPE))
  base = jax.jit(algorithm.backbone.init)(jax.random.key(0))
  begin = jax.jit(algorithm.begin)
  roles = begin(jax.random.key(1), adapted.start(base, {}))
  roles, memory, _ = reduction.begin(algorithm, roles, 0)
  return family_test.Case(algorithm, roles, memory, PLAN)


@pytest.mark.parametrize('name', ['scaffold', 'ditto', 'fedrep'])
def test_wide_vmap_equals_the_loop(name):
  one = case(name)
  wide = family_test.trained(one, family_test.clients(one))
  loop = family_test.trained(one, family_test.clients(one), 'loop')
  for x, y in zip(wide, loop, strict=True):
    world.close(x, y, atol=1e-4)


def test_one_client_and_one_batch_is_a_step_of_sgd():
  one = case('fedavg')
  rows = family_test.ROWS[:1, :1]
  chunk = family_test.clients(one, rows)
  totals, *_ = family_test.trained(one, chunk)
  shared, *_ = family_test.closed(one, totals)
  batch = jax.tree.map(lambda x: x[rows[0, 0]], family_test.table())
  form = network.form(net(), *SHAPE)
  params = form.whole(_leaves(one.roles.shared))

  def loss(params):
    logits = Net().apply({'params': params}, batch['inputs'])
    values = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['labels']
    )
    return values.mean()

  expected = jax.tree.map(
    lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params)
  )
  world.close(form.whole(_leaves(shared)), expected, atol=1e-6)


def _leaves(parts):
  return tree.flat(parts['body']) | tree.flat(parts['head'])


def predicted(one, roles):
  batch = {'inputs': SOME, 'mask': jnp.ones(len(SOME))}
  predict = jax.jit(one.algorithm.predict, static_argnums=2)
  return predict(roles, batch, PLAN).logits


def moved(one):
  """Roles whose LoRA does something."""
  keys = iter(jax.random.split(jax.random.key(3), 9))
  body = jax.tree.map(
    lambda x: x + jax.random.normal(next(keys), x.shape),
    one.roles.shared['body'],
  )
  return one.roles._replace(shared=one.roles.shared | {'body': body})


def test_lora_beside_the_layers_equals_lora_in_the_kernels():
  one = case('fedavg', 'first,again')
  assert network.form(net(lora='first,again'), *SHAPE).beside
  roles = moved(one)
  whole = one.algorithm.models(roles)['global']['network']
  form = network.form(net(), *SHAPE)
  merged = Net().apply({'params': form.whole(tree.flat(whole))}, SOME)
  found = predicted(one, roles)['global']
  world.close(found, merged, atol=1e-3)
  assert np.abs(merged - predicted(one, one.roles)['global']).max() > 0.1


def test_fresh_lora_is_the_network_and_trains_beside_the_head_alone():
  one, plain = case('fedavg', 'first'), case('fedavg')
  world.close(predicted(one, one.roles), predicted(plain, plain.roles))
  assert set(tree.flat(one.roles.shared)) == {
    'body/first/kernel/a', 'body/first/kernel/b', 'head/last/kernel',
    'head/last/bias',
  }  # fmt: skip
  assert 'first/kernel' in tree.flat(one.roles.frozen['base']['network'])


@pytest.mark.parametrize('name', ['fedper', 'fedrep', 'local'])
def test_what_is_personal_is_not_sent(name):
  one = case(name)
  totals, personal, _ = family_test.trained(one, family_test.clients(one))
  body = set() if name == 'local' else {'body'}
  assert set(totals.update) == body
  assert set(personal) == {'body', 'head'} - body
  before = world.stacked(one.roles.personal, family_test.K)
  change = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), personal, before)
  assert min(jax.tree.leaves(change)) > 0


def test_the_shared_model_of_ditto_is_that_of_fedavg():
  """And the own one is pulled to what the server sent."""
  totals = {}
  for name in ('ditto', 'fedavg'):
    one = case(name)
    totals[name] = family_test.trained(one, family_test.clients(one))
  world.close(totals['ditto'][0].update, totals['fedavg'][0].update, atol=1e-4)
  own, form = net(), network.form(net(), *SHAPE)
  loose = networks.ditto(setting(own), form, 0.0)
  free = case('ditto')._replace(algorithm=loose)
  chunk = family_test.clients(free)

  def distance(found):
    start = world.stacked(free.roles.shared, family_test.K)
    return float(tree.squared_norm(tree.subtract(found[1], start)))

  assert distance(totals['ditto']) < distance(family_test.trained(free, chunk))


def test_a_network_s_prediction_is_that_of_what_it_exports():
  for name in MAKERS:
    one = case(name)
    found = predicted(one, one.roles)
    form = network.form(net(), *SHAPE)
    for model, parts in one.algorithm.models(one.roles).items():
      params = form.whole(tree.flat(parts['network']))
      out = Net().apply({'params': params}, SOME)
      world.close(found[model], out, atol=1e-5)


def test_controls_are_no_part_of_the_model():
  """SCAFFOLD begins as FedAvg does, though it keeps something of each key."""
  one, plain = case('scaffold'), case('fedavg')
  found = predicted(one, one.roles)['global']
  world.close(found, predicted(plain, plain.roles)['global'])
  assert np.abs(found).max() > 1e-3
