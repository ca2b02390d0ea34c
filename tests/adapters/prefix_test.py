"""Prefixes: off they are the base, on they are keys and values in front."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters.prefix import Prefix, turned_on
from fedms_jax.algorithms import prefix_tuning
from fedms_jax.core import columns
from fedms_jax.core.activation import Stack, at_rest
from fedms_jax.core.types import Span
from fedms_jax.models import attention, transformer
from tests import world
from tests.algorithms import cohort

SPEC = Prefix(2)


def test_a_prefix_of_zeros_still_draws_attention():
  """One query, and a key of score 0 with value 1: half of it is left."""
  one = jnp.ones((1, 1, 1, 1))
  key, value = (
    jnp.zeros((1, 2, 1, 1)),
    jnp.array([0.0, 1.0])[None, :, None, None],
  )
  seen = attention.attend(one, key, value, before=jnp.array([True]))
  np.testing.assert_allclose(seen, np.full((1, 1, 1, 1), 0.5))
  hidden = attention.attend(one, key, value, before=jnp.array([False]))
  np.testing.assert_array_equal(hidden, one)


def drawn(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('masked', [False, True])
def test_all_tokens_see_what_is_in_front_and_else_what_they_saw(causal, masked):
  """As in a plain softmax over those keys."""
  q, k, v = (drawn(2, 4, 2, 3, seed=i) for i in range(3))
  first, values = drawn(2, 2, 1, 3, seed=3), drawn(2, 2, 1, 3, seed=4)
  k1, v1 = (x[:, :, :1] for x in (k, v))  # grouped: two heads, one key
  mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool) if masked else None
  found = attention.attend(
    q,
    jnp.concatenate([first, k1], 1),
    jnp.concatenate([values, v1], 1),
    mask,
    causal=causal,
    before=jnp.array([True, True]),
  )
  for b in range(2):
    for t in range(4):
      last = t + 1 if causal else 4
      at = [i for i in range(last) if not masked or bool(mask[b, i])]
      keys = np.concatenate([first[b, :, 0], k1[b, at, 0]])
      own = np.concatenate([values[b, :, 0], v1[b, at, 0]])
      for h in range(2):
        w = np.exp(keys @ np.asarray(q[b, t, h]) / 3**0.5)
        expected = (w / w.sum()) @ own
        np.testing.assert_allclose(found[b, t, h], expected, rtol=1e-4)


@functools.cache
def method():
  """(algorithm, roles at the first round)."""
  algorithm = prefix_tuning.prefix_tuning(world.setting(), SPEC)
  return algorithm, jax.jit(algorithm.begin)(jax.random.key(2), world.start())


def run(tree):
  backbone = world.backbone().adapted(SPEC)
  base = world.start().frozen['base']
  x = backbone.embed(base, world.columns()['inputs'][:3])
  return backbone.run([Span(0, world.BLOCKS, (base['blocks'], tree))], x, None)


def moved(tree, value=0.5):
  """With values in all blocks but the first."""
  return jax.tree.map(lambda x: x.at[1:].add(value), tree)


def test_a_fresh_one_is_the_base_and_one_with_values_is_not():
  fresh = SPEC.init(jax.random.key(0), world.start().frozen['base']['blocks'])
  shapes = {k: x.shape for k, x in fresh['attn']['prefix'].items()}
  assert shapes == dict.fromkeys('kv', (world.BLOCKS, 2, world.WIDTH))
  base = run(None)
  np.testing.assert_allclose(run(fresh), base, atol=1e-6)
  assert np.abs(run(moved(fresh)) - base).max() > 1e-2
  on = turned_on(Stack(fresh, fresh, (True,) * world.BLOCKS)).part
  assert np.abs(run(on) - base).max() > 1e-4
  assert turned_on(at_rest(fresh, world.BLOCKS)).part is None


def test_blocks_that_do_not_train_have_none_whatever_the_schedule():
  """The prefix of the top block alone, above what is computed once."""
  algorithm, roles = method()
  rows = world.cohort_rows()
  after, *_ = cohort.one_round(algorithm, roles, rows, world.TOP)
  tree = after.shared['blocks']['attn']['prefix']
  assert (
    not np.asarray(tree['v'][:-1]).any() and np.asarray(tree['v'][-1]).any()
  )
  world.same(tree['k'][:-1], roles.shared['blocks']['attn']['prefix']['k'][:-1])
  # Computed from the prefix on or whole, it is one model.
  logits = [
    predicted(algorithm, after, plan) for plan in (world.TOP, world.DENSE)
  ]
  for name in ('pretrained', 'global'):
    np.testing.assert_allclose(logits[0][name], logits[1][name], atol=1e-5)
  assert np.abs(logits[0]['global'] - logits[0]['pretrained']).max() > 1e-4


def predicted(algorithm, roles, plan):
  batch = columns.take(world.table(), jnp.arange(1, 7))
  batch = columns.complete(algorithm, roles, batch, plan)
  return algorithm.predict(roles, batch, plan).logits


def test_a_prefix_in_training_is_on_from_the_first_step():
  """Keys move too, once there are values that they choose."""
  algorithm, roles = method()
  before = roles.shared['blocks']['attn']['prefix']
  rows = world.cohort_rows(clients=1, steps=2)
  after, *_ = cohort.one_round(algorithm, roles, rows, world.DENSE)
  tree = after.shared['blocks']['attn']['prefix']
  assert set(tree) == {'k', 'v'}  # and nothing that says so is sent
  assert np.abs(tree['v']).min() > 0
  assert np.abs(tree['k'] - before['k']).max() > 1e-6


def test_a_model_without_keys_of_its_own_is_told():
  with pytest.raises(ValueError, match='needs the kernel attn/k'):
    SPEC.init(
      jax.random.key(0), {'mlp': {'up': {'kernel': jnp.ones((2, 3, 4))}}}
    )


def test_the_first_token_is_a_prefix_of_its_key_and_value():
  """Those behind it see it so: it stands at the place 0, and they from 1 on."""
  shape = transformer.TransformerConfig(
    blocks=1, width=8, heads=2, mlp_width=8, rotary=10.0, causal=True
  )
  x = drawn(2, 4, 8)[:1]
  plain = transformer.Attention(shape)
  params = plain.init(jax.random.key(0), x, None)['params']
  expected = plain.apply({'params': params}, x, None)
  k, v = (
    x[0, :1] @ params[n]['kernel'] + params[n]['bias'][None] for n in 'kv'
  )
  variables = {'params': params, 'adapter': {'prefix': {'k': k, 'v': v}}}
  found = transformer.Attention(shape, Prefix(1)).apply(
    variables, x[:, 1:], None
  )
  np.testing.assert_allclose(found, expected[:, 1:], atol=1e-5)
