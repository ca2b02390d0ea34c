"""Products with kernels that are stored in another type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora
from fedms_jax.core.types import Span
from fedms_jax.models import linear, storages, transformer

D_IN, D_OUT = 6, 4
LORA = lora.Spec(2, 2, ('attn/q', 'attn/v'))
STORED = ['float32', 'bfloat16', 'int8']


def draw(*axes, seed=0):
  return jax.random.normal(jax.random.key(seed), axes)


def stored(dtype, *axes):
  kernel = draw(*axes, seed=1)
  return jnp.round(30 * kernel).astype(dtype) if dtype == 'int8' else (
    kernel.astype(dtype)
  )  # fmt: skip


def plain(x, kernel, dtype):
  """What JAX makes of it by itself."""
  return x @ kernel.astype(dtype)


def near(a, b, dtype):
  atol = {'float32': 1e-6, 'bfloat16': 0.1}[dtype]
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype and x.shape == y.shape
    x, y = (np.asarray(z, np.float32) for z in (x, y))
    np.testing.assert_allclose(x, y, atol=atol * max(1, np.abs(y).max()))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('storage', STORED)
def test_a_product_and_its_gradients_are_what_jax_makes(storage, dtype):
  x = draw(3, 5, D_IN).astype(dtype)
  kernel = stored(storage, D_IN, D_OUT)
  inputs = (0,) if storage == 'int8' else (0, 1)

  def found(product):
    def total(x, kernel):
      return jnp.sum(jnp.sin(product(x, kernel, dtype).astype(jnp.float32)))

    return jax.value_and_grad(total, inputs)(x, kernel)

  near(found(linear.product), found(plain), dtype)


@pytest.mark.parametrize('storage', ['float32', 'bfloat16'])
def test_a_readout_and_its_gradients_are_those_of_float32(storage):
  """But for the rounding of the logits' gradient to the type of x."""
  x, table = draw(3, 5, D_IN).astype('bfloat16'), stored(storage, 9, D_IN)

  def found(readout, x, table):
    def total(x, table):
      out = readout(x, table)
      assert out.dtype == jnp.float32
      return jnp.sum(jnp.sin(out))

    return jax.value_and_grad(total, (0, 1))(x, table)

  def exact(x, table):
    return jnp.einsum(
      'btd,vd->btv', x, table.astype(x.dtype),
      preferred_element_type='float32',
    )  # fmt: skip

  value, gradient = found(linear.readout, x, table)
  true, exact_gradient = found(exact, x, table)
  assert value == true
  near(gradient, exact_gradient, 'bfloat16')


def test_many_clients_share_one_kernel():
  """Each has an input of its own, and the kernel is not repeated."""
  x, kernel = draw(7, 3, D_IN), stored('int8', D_IN, D_OUT)

  def gradient(x):
    return jax.grad(lambda x: jnp.sum(linear.product(x, kernel, 'float32')))(x)

  jaxpr = str(jax.make_jaxpr(jax.vmap(gradient))(x))
  assert f'[{D_IN},{D_OUT}]' in jaxpr
  assert f'[7,{D_IN},{D_OUT}]' not in jaxpr
  near(jax.vmap(gradient)(x), jax.vmap(jax.grad(
    lambda x: jnp.sum(plain(x, kernel, 'float32'))
  ))(x), 'float32')  # fmt: skip


def kept(storage, dtype, blocks=4):
  """What the backward pass through LoRA keeps, as (type, shape of one block),
  of arrays that are not the parameters themselves."""
  config = transformer.TransformerConfig(
    blocks=blocks, width=16, heads=2, mlp_width=24, dtype=dtype
  )
  weights = {'blocks': transformer.init_blocks(config, jax.random.key(0))}
  params = storages.stored(weights, storage, dtype)['blocks']
  adapter = LORA.init(jax.random.key(1), params)
  x = draw(3, 5, 16).astype(dtype)

  def run(adapter):
    spans = [Span(0, blocks, (params, adapter))]
    return transformer.run(config, spans, x, adapter=LORA)

  _, backward = jax.vjp(run, adapter)
  mine = {id(leaf) for leaf in jax.tree.leaves(params)}
  return [
    (leaf.dtype, leaf.shape[1:])
    for leaf in jax.tree.leaves(backward)
    if id(leaf) not in mine
  ]


@pytest.mark.parametrize(
  ('storage', 'dtype'),
  [('float32', 'bfloat16'), ('int8', 'bfloat16'), ('bfloat16', 'float32')],
)
def test_the_backward_pass_keeps_no_converted_kernel(storage, dtype):
  kernels = {(16, 16), (16, 24), (24, 16)}
  found = kept(storage, dtype)
  assert found
  assert not [x for x in found if x[1] in kernels and x[0] == dtype]
