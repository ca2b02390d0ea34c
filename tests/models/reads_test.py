"""Of the last block a model that reads its first token computes no other."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import lora
from fedms_jax.adapters.prefix import Prefix
from fedms_jax.core.types import Span
from fedms_jax.models import counted, pretrained, transformer
from tests.models.references import images, tokens, weights
from tests.persistence.model_files_test import CONFIGS

END = 59  # of a text, in the configs
TARGETS = ('attn/q', 'attn/k', 'attn/v', 'attn/o', 'mlp/up', 'mlp/down')


def chosen(kind, **options):
  config, usual = CONFIGS[kind]
  return config, dataclasses.replace(usual, **options)


READS = {
  'vit': chosen('vit'),
  'deit': chosen('deit'),
  'bert': chosen('bert'),
  'bert-cls': chosen('bert', pooling='cls'),
  'roberta': chosen('roberta', head='classification', classes=3),
  'distilbert': chosen('distilbert'),
  'dinov2': chosen('dinov2', pooling='cls'),
  'clip': chosen('clip', head='classification', classes=3, tower='image'),
  'clip-image': chosen('clip', head='contrast', tower='image'),
  'clip-both': chosen('clip', head='contrast', tower='both'),
}
READS_ALL = {
  'vit': chosen('vit', pooling='mean'),
  'bert': chosen('bert', pooling='mean'),
  'roberta-lm': chosen('roberta'),
  'dinov2': chosen('dinov2', pooling='cls_mean'),
  'gpt2': chosen('gpt2'),
  'clip-text': chosen('clip', head='contrast', tower='text'),
}


def moved(params, config, options, key=0):
  """LoRA of all layers that is not as it began."""
  both = options.head == 'contrast' and options.tower == 'both'
  roots = ('image/', 'text/') if both else ('',)
  spec = lora.Spec(2, 2.0, tuple(r + t for r in roots for t in TARGETS))
  fresh = spec.init(jax.random.key(key), params['blocks'])
  return spec, jax.tree.map(lambda x: x + 0.05, fresh)


def given(config, options):
  if options.head == 'contrast':
    texts = np.full((3, 7), END)
    texts[:, :4] = tokens(3, 4)
    return {'image': images(3), 'text': texts}
  has_images = (
    'image_size' in config
    or options.head != 'masked_lm'
    and (config['model_type'] in ('clip', 'dinov2'))
  )
  return images(3) if has_images else tokens(3, 9)


def spans(blocks, adapter, cuts):
  return [
    Span(a, b, jax.tree.map(lambda x, a=a, b=b: x[a:b], (blocks, adapter)))
    for a, b in zip(cuts, cuts[1:], strict=False)
  ]


QUICK = ('vit', 'bert', 'clip-both')


@pytest.mark.parametrize(
  'kind',
  [
    pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in READS
  ],
)
def test_features_and_gradients_are_those_of_the_whole_block(kind):
  """Wherever spans are cut; of a loop and of none."""
  config, options = READS[kind]
  params = weights(pretrained.model(config, options), 0.2)[0]
  inputs = given(config, options)
  spec, adapter = moved(params, config, options)

  def both(cuts, read, **fields):
    chosen = dataclasses.replace(options, **fields)
    backbone = pretrained.model(config, chosen).backbone.adapted(spec)
    assert backbone.reads == 1
    backbone = backbone if read else backbone.whole()
    x, mask = backbone.embed(params, inputs), backbone.mask(inputs)

    @functools.partial(jax.grad, has_aux=True, argnums=(0, 1))
    def features(adapter, x):
      own = spans(params['blocks'], adapter, cuts)
      found = backbone.featured(params, own, x, mask)
      return jnp.sum(found.astype(jnp.float32) ** 2), found

    return jax.jit(features)(adapter, x)

  blocks = pretrained.model(config, options).backbone.blocks
  ways = [([0, 1, blocks], {'unroll': 0, 'remat': True})]
  if kind == 'vit':  # what it does for one, the block does for all
    ways += [([0, blocks], {}), ([0, blocks - 1, blocks], {})]
  for cuts, fields in ways:
    ours, theirs = (both(cuts, read, **fields) for read in (True, False))
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4, rtol=2e-4),
      ours, theirs,
    )  # fmt: skip


@pytest.mark.parametrize('kind', READS_ALL)
def test_what_reads_all_tokens_computes_them(kind):
  config, options = READS_ALL[kind]
  backbone = pretrained.model(config, options).backbone
  assert backbone.reads is None and backbone.cost.last is None


def products(config, options, read):
  """FLOPs of the last block's own products, and those of the cost."""
  backbone = pretrained.model(config, options).backbone
  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  last = jax.tree.map(
    lambda x: x.update(shape=(1, *x.shape[1:])), shapes['blocks']
  )
  top = backbone.blocks - 1
  inputs = jax.tree.map(lambda x: x[:1], given(config, options))
  x = jax.eval_shape(backbone.embed, shapes, inputs)

  def run(blocks, x):
    reads = {'reads': backbone.reads} if read else {}
    return backbone.run([Span(top, top + 1, (blocks, None))], x, None, **reads)

  return counted.cost(run, last, x)[0], backbone.cost


@pytest.mark.parametrize('kind', ['vit', 'dinov2', 'clip', 'clip-image'])
def test_the_last_block_costs_what_is_counted_in_it(kind):
  config, options = READS[kind]
  found, cost = products(config, options, read=True)
  assert found == cost.last.flops < 0.7 * cost.block
  assert products(config, options, read=False)[0] == cost.block


def test_a_stack_that_is_one_loop_is_no_copy_of_its_weights():
  """All blocks but one as a loop of their own would be."""
  config, options = READS['vit']
  backbone = pretrained.model(config, options).backbone
  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  x = jax.ShapeDtypeStruct((1, 5, backbone.width), jnp.float32)

  def run(blocks, x):
    whole = [Span(0, backbone.blocks, (blocks, None))]
    return backbone.run(whole, x, None, reads=1)

  made = jax.make_jaxpr(run)(shapes['blocks'], x)
  assert made.out_avals[0].shape[1] == 1
  names = [eqn.primitive.name for eqn in made.eqns]
  assert names[-1] == 'slice' and 'slice' not in names[:-1]


CONFIG = transformer.TransformerConfig(3, 16, heads=4, mlp_width=24)
SHAPES = {
  'plain': {},
  'grouped': {'kv_heads': 2},
  'rotary': {'rotary': 100.0, 'qk_norm': True},
  'causal': {'causal': True},
  'window': {'local': (False, True, True), 'window': 2},
  'capped': {'attention_cap': 3.0},
  'post': {'pre_norm': False},
  'branches': {'branch_norms': True, 'gated': True, 'activation': 'silu'},
  'scaled': {'layer_scale': True},
}


@pytest.mark.parametrize('reads, prefixed', [(1, False), (2, True)])
@pytest.mark.parametrize('name', SHAPES)
def test_any_block_gives_its_first_tokens_as_if_it_gave_all(
  name, reads, prefixed
):
  config = dataclasses.replace(CONFIG, **SHAPES[name])
  blocks = transformer.init_blocks(config, jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (2, 6, 16))
  mask = jnp.arange(6)[None] < jnp.array([6, 4])[:, None]
  adapter = Prefix(2) if prefixed else lora.Spec(2, 2.0, ('attn/q', 'attn/k'))
  own = adapter.init(jax.random.key(2), blocks)
  own = jax.tree.map(lambda x: x + 0.3, own)
  cuts = spans(blocks, own, [0, 1, 3])
  whole, few = (
    transformer.run(config, cuts, x, mask, adapter, reads=r)
    for r in (None, reads)
  )
  assert few.shape == (2, reads, 16)
  np.testing.assert_allclose(few, whole[:, :reads], atol=1e-5)
