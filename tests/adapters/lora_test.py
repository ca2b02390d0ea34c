"""LoRA as trees: what merging is, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora
from fedms_jax.algorithms import adapted
from tests import world

SHAPE = {'attn': {'q': {'kernel': jnp.ones((2, 6, 4))}}}


def test_merging_adds_the_scaled_product_and_what_is_dense():
  a, b, delta = (
    jax.random.normal(jax.random.key(i), s)
    for i, s in enumerate([(2, 6, 3), (2, 3, 4), (2, 6, 4)])
  )
  found = lora.merge(SHAPE, {'attn': {'q': {'a': a, 'b': b}}}, 0.5)
  np.testing.assert_allclose(
    found['attn']['q']['kernel'], 1 + 0.5 * a @ b, rtol=1e-6
  )
  more = {'attn': {'q': {'a': a, 'b': b, 'delta': delta}}}
  found = lora.merge(SHAPE, more, 0.5)['attn']['q']['kernel']
  np.testing.assert_allclose(found, 1 + 0.5 * a @ b + delta, rtol=1e-5)


def test_an_int8_kernel_is_not_merged_into():
  whole = jax.tree.map(lambda x: x.astype(jnp.int8), SHAPE)
  added = lora.Spec(2, 2.0, ('attn/q',)).init(jax.random.key(0), SHAPE)
  with pytest.raises(ValueError, match='float32 to merge'):
    lora.merge(whole, added, 1.0)


def test_alpha_over_rank_is_the_scale_of_whatever_runs_in_a_setting():
  """Twice the alpha is what twice the B would be; no other number counts."""
  spec, setting = world.LORA, world.setting()
  roles = world.trained(world.first_stage()[1])
  base, blocks = roles.frozen['base'], roles.shared['blocks']
  batch = {'inputs': world.columns()['inputs'][:4]}
  doubled = lora.joined(
    lora.leaves(blocks, 'a'),
    jax.tree.map(lambda x: 2 * x, lora.leaves(blocks, 'b')),
  )

  def features(setting, blocks):
    return adapted.prefix(setting.backbone, base, blocks, batch, world.BLOCKS)

  louder = dataclasses.replace(spec, alpha=2 * spec.alpha)
  found = features(setting._replace(lora=louder), blocks)
  world.same(found, features(setting, doubled))
  assert np.abs(found - features(setting, blocks)).max() > 0.01


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    (lora.Spec(2, 0.0, ('attn/q',)), 'alpha`=0.0'),
    (lora.Spec(5, 1.0, ('attn/q',)), 'allowed: 1 to 4'),
    (lora.Spec(2, 1.0, ()), 'one or more of attn/q'),
    (lora.Spec(2, 1.0, ('attn/k',)), "Did you mean 'attn/q'"),
  ],
)
def test_a_spec_that_fits_no_kernel_is_refused(spec, message):
  with pytest.raises(ValueError, match=message):
    spec.init(jax.random.key(0), SHAPE)
