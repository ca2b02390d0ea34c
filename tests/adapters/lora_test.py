"""LoRA as trees: what merging is, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora

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
  added = lora.init(jax.random.key(0), SHAPE, ['attn/q'], 2)
  with pytest.raises(ValueError, match='float32 to merge'):
    lora.merge(whole, added, 1.0)
