"""Networks of one's own: what is found in them, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedms_jax.core.types import Outputs
from fedms_jax.models import counted, flax_network, network, tasks


class Net(nn.Module):
  norm: bool = False

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(3, (3, 3), padding='VALID')(x)
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Dense(5)(x.reshape(len(x), -1))
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(4)(x)


class Mlp(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Linear(6, 5, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.last = nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x):
    return self.last(self.drop(self.first(x)))


class Averaging(nnx.Module):
  def __init__(self, rngs):
    self.norm = nnx.BatchNorm(6, rngs=rngs)

  def __call__(self, x):
    return self.norm(x)


IMAGES, ROWS = ((8, 8, 1), 'float32'), ((6,), 'float32')
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)


def test_the_parts_of_a_network_are_found_by_their_paths():
  own = flax_network.of_flax(Net(), head='Dense_1', lora='Dense_*/kernel')
  form = network.form(own, *IMAGES)
  assert form.head == ('Dense_1/bias', 'Dense_1/kernel')
  assert (
    form.body == form.beside
    and form.body
    or (form.body == ('Dense_0/kernel',) == tuple(form.beside))
  )
  assert set(form.fixed) == {
    'Conv_0/bias', 'Conv_0/kernel', 'Dense_0/bias', 'Dense_0/kernel',
  }  # fmt: skip


def test_any_tree_of_parameters_comes_back():
  params = [jnp.ones(2), {'a': (jnp.zeros(3), jnp.arange(2))}]
  own = network.of(lambda key: params, lambda p, x: x)
  form = network.form(own, *ROWS)
  assert form.fixed == ('1/a/1',)  # whole numbers do not train
  again = form.whole(form.flat(params))
  assert jax.tree.structure(again) == jax.tree.structure(params)
  for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  ('patterns', 'said'),
  [
    ({'head': 'Dense_9'}, 'Dense_1/kernel'),
    ({'lora': 'Conv_0'}, 'kernel [d_in, d_out]'),
    ({'head': 'Dense_1', 'lora': 'Dense_1'}, 'Dense_0/kernel'),
  ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_what_there_is(
  patterns, said
):
  with pytest.raises(ValueError, match='matches no') as e:
    network.form(flax_network.of_flax(Net(), **patterns), *IMAGES)
  assert said in str(e.value)


def test_what_would_not_be_averaged_is_refused():
  with pytest.raises(ValueError, match='batch_stats'):
    network.form(flax_network.of_flax(Net(norm=True)), *IMAGES)
  with pytest.raises(ValueError, match='BatchStat'):
    network.form(flax_network.of_flax(Averaging), *ROWS)


def test_logits_that_do_not_fit_the_data_are_refused():
  form = network.form(flax_network.of_flax(Net()), *IMAGES)
  network.check_logits(form, *IMAGES, 4)
  with pytest.raises(ValueError, match=r'\[B, 4\].*\[B, 7\]'):
    network.check_logits(form, *IMAGES, 7)


def test_dropout_is_of_training_alone():
  own = flax_network.of_flax(Net(), training='train')
  x = jnp.ones((1, 8, 8, 1))
  params = jax.jit(own.init)(jax.random.key(0), x)
  apply = jax.jit(own.apply)
  a, b = (apply(params, x, jax.random.key(k)) for k in (1, 2))
  assert jnp.abs(a - b).max() > 0
  plain = jax.jit(Net().apply)({'params': params}, x)
  np.testing.assert_allclose(apply(params, x, None), plain, rtol=1e-5)


@pytest.mark.parametrize(
  'module', [Mlp, Mlp(nnx.Rngs(3))], ids=['class', 'one']
)
def test_a_module_of_nnx_is_a_network(module):
  own = flax_network.of_flax(module, head='last')
  assert network.form(own, *ROWS).head == ('last/bias', 'last/kernel')
  params = own.init(jax.random.key(0), X[:1])
  apply = jax.jit(own.apply)
  a, b = (apply(params, X, jax.random.key(k)) for k in (1, 2))
  assert jnp.abs(a - b).max() > 0
  out = X @ params['first']['kernel'] + params['first']['bias'][None]
  out = out @ params['last']['kernel'] + params['last']['bias'][None]
  np.testing.assert_allclose(apply(params, X, None), out, rtol=1e-5)


def test_a_module_that_is_given_stays_as_it_was():
  module = Mlp(nnx.Rngs(3))
  own = flax_network.of_flax(module)
  start = own.init(jax.random.key(0), X[:1])
  zeros = jax.tree.map(jnp.zeros_like, start)
  jax.jit(own.apply)(zeros, X, jax.random.key(1))
  again = own.init(jax.random.key(5), X[:1])  # whatever the seed
  for x, y in zip(jax.tree.leaves(start), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(x, y)
  assert jnp.abs(start['first']['kernel']).max() > 0


def test_a_class_of_nnx_begins_as_the_seed_says():
  own = flax_network.of_flax(Mlp)
  a, b, c = (
    own.init(jax.random.key(k), X)['last']['kernel'] for k in (1, 1, 2)
  )
  np.testing.assert_array_equal(a, b)
  assert jnp.abs(a - c).max() > 0


def test_the_same_module_is_the_same_network():
  """So that two runs share compiled programs."""
  one, two = (flax_network.of_flax(Net(), head='Dense_1') for _ in range(2))
  assert network.backbone(one, *IMAGES) is network.backbone(two, *IMAGES)


def test_costs_are_those_of_products_and_convolutions():
  own = flax_network.of_flax(Net())
  cost = network.backbone(own, *IMAGES).cost
  assert cost.block == 2 * (36 * 9 * 3 + 108 * 5 + 5 * 4)
  assert cost.activation == 2 * 4 * (108 + 5 + 4)


def test_what_runs_in_a_loop_counts_as_often():
  def looped(x):
    return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]

  assert counted.cost(looped, jnp.ones((3, 3)))[0] == 7 * 2 * 27


def test_a_loss_of_one_s_own_is_of_each_row():
  def loss(logits, values):
    return jnp.abs(logits - values).sum(-1)

  outputs = Outputs('values', ('a', 'b'), (0.0, 0.0), (1.0, 1.0))
  task = network.task(loss, outputs)
  batch = {'values': jnp.zeros((3, 2)), 'mask': jnp.array([True, True, False])}
  values, weights = task.loss(jnp.ones((3, 2)), batch)
  np.testing.assert_array_equal(values, [2, 2, 2])
  np.testing.assert_array_equal(weights, [1, 1, 0])
  assert task.kind == 'values' and network.task(loss, outputs) is task
  whole = network.task(lambda logits, values: jnp.sum(logits), outputs)
  with pytest.raises(ValueError, match='one number for each row'):
    whole.loss(jnp.ones((3, 2)), batch)
  mine = tasks.classification()
  assert network.task(mine, None) is mine
