"""Bottleneck adapters: the base at first, and exact mixtures."""

import jax
import numpy as np
import pytest

from fedms_jax.adapters import bottleneck
from fedms_jax.adapters.bottleneck import Bottleneck
from fedms_jax.core import tree
from tests import world

SPEC = Bottleneck(4, ('mlp/down', 'attn/o'))


def drawn(seed):
  blocks = world.start().frozen['base']['blocks']
  fresh = SPEC.init(jax.random.key(seed), blocks)
  keys = iter(jax.random.split(jax.random.key(seed), 99))
  return jax.tree.map(
    lambda x: x + jax.random.normal(next(keys), x.shape), fresh
  )


def layer(params, target='mlp/down'):
  """The bottleneck of the second block."""
  flat = tree.flat(params)
  names = ('down', 'down_bias', 'up', 'up_bias')
  return {name: flat[f'{target}/{name}'][1] for name in names}


def test_it_is_two_layers_behind_another():
  p, y = layer(drawn(0)), np.random.default_rng(0).normal(size=(2, 5, 8))
  assert p['down'].shape == (8, 2)
  inner = np.maximum(y @ p['down'] + p['down_bias'][None, None], 0)
  expected = y + inner @ p['up'] + p['up_bias'][None, None]
  found = SPEC.apply(p, None, y.astype(np.float32))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_one_changes_nothing():
  blocks = world.start().frozen['base']['blocks']
  p = layer(SPEC.init(jax.random.key(0), blocks))
  y = jax.random.normal(jax.random.key(1), (3, 8))
  np.testing.assert_array_equal(SPEC.apply(p, None, y), y)
  assert np.abs(p['down']).max() > 0  # or nothing would ever move


def test_a_mixture_adds_a_share_of_what_each_adds():
  one, other = drawn(0), drawn(1)
  y = jax.random.normal(jax.random.key(2), (3, 8))
  both = layer(bottleneck.mixed(0.3, one, other))
  a, b = (SPEC.apply(layer(p), None, y) - y for p in (one, other))
  found = SPEC.apply(both, None, y) - y
  np.testing.assert_allclose(found, 0.3 * a + 0.7 * b, rtol=1e-4, atol=1e-5)
  assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize(
  ('targets', 'said'), [((), 'is empty'), (('mlp/dwn',), "mean 'mlp/down'")]
)
def test_layers_that_are_not_there_are_refused(targets, said):
  blocks = world.start().frozen['base']['blocks']
  with pytest.raises(ValueError, match=f'`Bottleneck.targets`.*{said}'):
    Bottleneck(4, targets).init(jax.random.key(0), blocks)
