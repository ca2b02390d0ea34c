"""The one block: rotary positions, int8 kernels, mixed precision, cost."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora
from fedms_jax.core.types import Span
from fedms_jax.models import costs, pretrained, rotary, storages, transformer
from fedms_jax.models.family import Options
from tests.models.references import tokens, weights
from tests.persistence.model_files_test import CONFIGS


def test_rotated_products_depend_on_the_distance_alone():
  keys = jax.random.split(jax.random.key(0), 2)
  q, k = (
    jnp.tile(jax.random.normal(key, (1, 1, 1, 8)), (1, 9, 1, 1)) for key in keys
  )
  for scaling in (
    rotary.Scaling(),
    rotary.Linear(4.0),
    rotary.Llama3(8.0, 1.0, 4.0, 16.0),
    rotary.Dynamic(4.0, 5),
    rotary.Yarn(4.0, 16.0, 32.0, 1.0, True),
    rotary.LongRope((1.0, 1.1, 1.2, 1.3), (2.0, 3.0, 4.0, 5.0), 5),
  ):
    angles = scaling.frequencies(4, 100.0, 9)
    turned = [rotary.rotate(x, angles)[0, :, 0] for x in (q, k)]
    products = np.asarray(turned[0] @ turned[1].T)
    for distance in range(-3, 4):
      diagonal = np.diagonal(products, distance)
      np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert np.ptp(products[0]) > 0.1


def test_linear_scaling_slows_every_pair_and_llama3_only_the_slow_ones():
  plain = np.asarray(rotary.Scaling().frequencies(16, 10000.0, 9))
  linear = rotary.Linear(4.0).frequencies(16, 10000.0, 9)
  np.testing.assert_allclose(linear, plain / 4)
  context, low, high = 64.0, 1.0, 4.0
  llama3 = rotary.Llama3(4.0, low, high, context)
  scaled = llama3.frequencies(16, 10000.0, 9)
  ratio = np.asarray(scaled) / plain
  turns = context * plain / (2 * np.pi)
  np.testing.assert_allclose(ratio[turns > high], 1.0)
  np.testing.assert_allclose(ratio[turns < low], 0.25)
  between = ratio[(turns > low) & (turns < high)]
  assert len(between) and (between < 1).all() and (between > 0.25).all()


LORA = lora.Spec(2, 2.0, ('attn/q', 'mlp/up'))


@pytest.fixture(scope='module')
def llama():
  """(config, exact parameters, LoRA, inputs) of a small LLaMA."""
  config, options = CONFIGS['llama']
  params, _ = weights(pretrained.model(config, options), 0.2)
  adapter = LORA.init(jax.random.key(1), params['blocks'])
  adapter = jax.tree.map(lambda x: x + 0.1, adapter)
  return config, params, adapter, tokens()


@functools.partial(jax.jit, static_argnums=0)
def apply(backbone, params, adapter, inputs):
  """Logits with LoRA."""
  backbone = backbone.adapted(LORA)
  mask = backbone.mask(inputs)
  spans = [Span(0, backbone.blocks, (params['blocks'], adapter))]
  x = backbone.run(spans, backbone.embed(params, inputs), mask)
  return backbone.logits(params, {}, backbone.features(params, x, mask))


class Bottleneck(NamedTuple):
  """An adapter behind a layer (Houlsby, arXiv 1902.00751): no LoRA."""

  where: tuple[str, ...] = ('mlp/down',)

  def init(self, key, blocks):
    layers, _, width = lora.kernels(blocks)[self.where[0]]
    down = jax.random.normal(key, (layers, width, 3))
    return {
      'mlp': {'down': {'down': down, 'up': jnp.zeros((layers, 3, width))}}
    }

  def apply(self, params, x, y):
    return y + jnp.tanh(y @ params['down']) @ params['up']


def test_the_block_takes_any_adapter_where_it_has_parameters():
  config = transformer.TransformerConfig(2, 16, heads=2, mlp_width=24)
  adapter, key = Bottleneck(), jax.random.key(0)
  blocks = transformer.init_blocks(config, key)
  fresh = adapter.init(jax.random.key(1), blocks)
  x = jax.random.normal(jax.random.key(2), (3, 5, 16))

  def run(params, adapter=adapter):
    spans = [Span(0, 2, (blocks, params))]
    return transformer.run(config, spans, x, adapter=adapter)

  plain = run(None)
  np.testing.assert_array_equal(run(fresh), plain)
  up = fresh['mlp']['down']['up'].at[1].set(0.5)
  moved = run({'mlp': {'down': fresh['mlp']['down'] | {'up': up}}})
  # Only the last block's is not zero: it adds to what that block puts out.
  mlp = jax.tree.map(lambda p: p[1], blocks['mlp'])
  last = {'down': fresh['mlp']['down']['down'][1], 'up': up[1]}
  first = [Span(0, 1, (jax.tree.map(lambda p: p[:1], blocks), None))]
  within = transformer.run(config, first, x)
  whole = {'params': jax.tree.map(lambda p: p[1], blocks)}
  silent = whole['params'] | {'mlp': jax.tree.map(jnp.zeros_like, mlp)}
  before = transformer.Block(config).apply({'params': silent}, within, None)
  y = plain - before
  np.testing.assert_allclose(
    moved, before + adapter.apply(last, None, y), atol=1e-5
  )
  with pytest.raises(ValueError, match='blocks 0 to 1.*none that applies'):
    run(fresh, adapter=None)


def test_int8_kernels_compute_as_what_they_stand_for(llama):
  config, exact, adapter, inputs = llama
  backbone = pretrained.model(config, Options(head='causal_lm')).backbone
  stored = storages.stored(exact, 'int8', 'float32')

  def widened(tree):
    if not isinstance(tree, dict):
      return tree
    out = {k: widened(v) for k, v in tree.items() if k != 'kernel_scale'}
    if 'kernel_scale' in tree:
      unit = tree['kernel_scale'][..., None, :]
      out['kernel'] = tree['kernel'].astype(jnp.float32) * unit
    return out

  ours = apply(backbone, stored, adapter, inputs)
  same = apply(backbone, widened(stored), adapter, inputs)
  np.testing.assert_allclose(ours, same, atol=1e-4)
  true = apply(backbone, exact, adapter, inputs)
  error = jnp.linalg.norm(ours - true) / jnp.linalg.norm(true)
  assert 1e-5 < error < 0.02


@pytest.mark.parametrize('storage', ['float32', 'bfloat16', 'int8'])
def test_mixed_precision_keeps_logits_and_lora_in_float32(llama, storage):
  config, exact, adapter, inputs = llama
  options = Options(head='causal_lm', dtype='bfloat16')
  backbone = pretrained.model(config, options).backbone
  params = storages.stored(exact, storage, 'bfloat16')

  @jax.jit
  def measured(adapter):
    out = apply(backbone, params, adapter, inputs)
    return jnp.mean(out**2), out

  gradient, out = jax.grad(measured, has_aux=True)(adapter)
  assert out.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype('float32')}
  backbone = pretrained.model(config, Options(head='causal_lm')).backbone
  true = apply(backbone, exact, adapter, inputs)
  error = jnp.linalg.norm(out - true) / jnp.linalg.norm(true)
  assert error < 0.03


@pytest.mark.parametrize('kind', ['gpt2', 'bert'])
def test_padding_is_never_seen(kind):
  config, _ = CONFIGS[kind]
  model = pretrained.model(config, Options(classes=2))
  params, _ = weights(model, 0.2)
  inputs = tokens()
  wide = np.pad(inputs, ((0, 0), (0, 4)), constant_values=-1)
  encode = jax.jit(pretrained.encode, static_argnums=0)
  np.testing.assert_allclose(
    encode(model.backbone, params, wide),
    encode(model.backbone, params, inputs),
    atol=1e-5,
  )


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'bert'])
def test_the_cost_of_a_block_is_what_the_compiler_counts(kind):
  config, options = CONFIGS[kind]
  # Long inputs, so that attention weighs as much as the layers.
  config = config | {'max_position_embeddings': 256, 'n_positions': 256}
  model = pretrained.model(config, options).backbone
  assert model.cost.tokens == 256
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  one = jax.tree.map(lambda x: x.update(shape=(1, *x.shape[1:])), shapes)
  x = jax.ShapeDtypeStruct((1, 256, model.width), jnp.float32)

  def run(blocks, x):
    return model.run([Span(0, 1, (blocks, None))], x, None)

  counted = jax.jit(run).lower(one['blocks'], x).cost_analysis()['flops']
  # What is no matrix product weighs much at this size, and nothing at others.
  assert model.cost.block < counted < 1.5 * model.cost.block


@pytest.mark.parametrize('gated', [False, True])
def test_the_backward_pass_keeps_no_more_than_the_cost_model_says(gated):
  """It keeps inputs of products, norms and nonlinearities, and no array for
  every derivative on the way."""
  config = transformer.TransformerConfig(
    blocks=2,
    width=16,
    heads=2,
    mlp_width=64,
    gated=gated,
    activation='silu' if gated else 'gelu',
  )
  batch, tokens = 3, 5
  blocks = transformer.init_blocks(config, jax.random.key(0))
  adapter = LORA.init(jax.random.key(1), blocks)
  x = jax.random.normal(jax.random.key(2), (batch, tokens, config.width))

  def run(adapter):
    spans = [Span(0, config.blocks, (blocks, adapter))]
    return transformer.run(config, spans, x, adapter=LORA)

  _, backward = jax.vjp(run, adapter)
  sizes = [
    leaf.nbytes for leaf in jax.tree.leaves(backward) if batch in leaf.shape
  ]
  per_block = costs.transformer(config, tokens, 0.0, 0.0).activation
  assert 0 < sum(sizes) <= config.blocks * batch * per_block


def spans(params, cuts):
  """The blocks of params, cut into spans."""
  return [
    Span(a, b, (jax.tree.map(lambda x, a=a, b=b: x[a:b], params), None))
    for a, b in zip(cuts, cuts[1:], strict=False)
  ]


def test_a_window_stays_with_its_block_wherever_spans_are_cut():
  """Loop or none, recomputed or not; and it is one that matters."""
  config, options = CONFIGS['gemma3']
  params = weights(pretrained.model(config, options), 0.2)[0]
  inputs = tokens()

  def states(cuts, change=None, **fields):
    chosen = dataclasses.replace(options, **fields)
    backbone = pretrained.model(config | (change or {}), chosen).backbone
    x = backbone.embed(params, inputs)
    x = backbone.run(spans(params['blocks'], cuts), x, inputs >= 0)
    return np.asarray(x)[inputs >= 0]

  expected = states([0, 1, 2, 3])
  for cuts in ([0, 3], [0, 2, 3], [0, 1, 3]):
    for fields in ({}, {'unroll': 0}, {'unroll': 0, 'remat': True}):
      np.testing.assert_allclose(states(cuts, **fields), expected, atol=1e-4)
  for change in (
    {'sliding_window': 2},
    {'layer_types': ['full_attention', *config['layer_types'][1:]]},
  ):
    assert np.abs(states([0, 3], change) - expected).max() > 0.01


def test_a_window_that_no_sequence_reaches_adds_no_operation():
  config, options = CONFIGS['mistral']
  shapes = None

  def traced(window):
    nonlocal shapes
    model = pretrained.model(config | {'sliding_window': window}, options)
    backbone = model.backbone
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))

    def run(params):
      x = backbone.embed(params, tokens())
      return backbone.run(spans(params['blocks'], [0, 2]), x, None)

    return str(jax.make_jaxpr(run)(shapes))

  assert traced(9) == traced(None) != traced(8)
