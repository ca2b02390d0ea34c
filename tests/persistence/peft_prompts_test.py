"""Soft prompts and prefixes in PEFT's files: layout, and parity with PEFT."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fedms_jax.adapters import prompt
from fedms_jax.adapters.prefix import Prefix
from fedms_jax.core.types import Span
from fedms_jax.models import pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import peft, peft_prompts
from tests.models import references

P, LLAMA = 3, {'model_type': 'llama', **references.GROUPED}


def prefixes(blocks, length=P, seed=0):
  """Random prefixes of all blocks."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(Prefix(length).init, jax.random.key(0), blocks)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )


def base_shapes(model):
  return jax.eval_shape(model.backbone.init, jax.random.key(0))


def test_each_row_has_block_by_block_a_key_and_a_value(tmp_path):
  model = pretrained.model(LLAMA, Options(head='causal_lm'))
  tree = prefixes(base_shapes(model)['blocks'])
  folder = tmp_path / 'adapter'
  peft_prompts.save_prefix(
    folder, model, tree, 2, base='here', task='CAUSAL_LM'
  )
  found = load_file(folder / peft.WEIGHTS)
  k, v = tree['attn']['prefix']['k'], tree['attn']['prefix']['v']
  blocks, _, width = k.shape
  assert found.keys() == {'prompt_embeddings'}
  array = found['prompt_embeddings'].reshape(P, blocks, 2, width)
  np.testing.assert_array_equal(array[1, 1, 0], k[1, 1])
  np.testing.assert_array_equal(array[2, 0, 1], v[0, 2])
  config = json.loads((folder / peft.CONFIG).read_text())
  assert config['token_dim'] == width and config['num_layers'] == blocks
  assert config['num_virtual_tokens'] == P
  assert config['num_attention_heads'] == 2


def test_a_block_without_a_prefix_is_told():
  model = pretrained.model(LLAMA, Options(head='causal_lm'))
  tree = prefixes(base_shapes(model)['blocks'])
  tree['attn']['prefix']['v'][0] = 0
  with pytest.raises(ValueError, match='block 0 has none'):
    peft_prompts.prefix_array(tree)


@pytest.mark.parametrize(
  ('config', 'task', 'said'),
  [
    ({'model_type': 'gpt2'}, 'CAUSAL_LM', 'prefix of gpt2'),
    (
      {'model_type': 'qwen2', 'use_sliding_window': True},
      'CAUSAL_LM',
      'see a window',
    ),
    ({'model_type': 'llama'}, None, 'no task_type'),
    ({'model_type': 'llama'}, 'SEQ_CLS', 'no prefix for SEQ_CLS'),
  ],
)
def test_models_of_which_peft_would_make_others_are_refused(config, task, said):
  with pytest.raises(ValueError, match=said):
    peft_prompts.check(config, task, prefix=True)


CASES = {
  'llama': 'CAUSAL_LM',
  'qwen2': 'CAUSAL_LM',
  'qwen3': 'CAUSAL_LM',
  'qwen3_classes': 'SEQ_CLS',
}


def reference(name, folder):
  case = references.CASES[name]
  base = references.build(case)
  checkpoint = references.reopen(base, folder / 'base')
  return base, checkpoint, references.load(case, checkpoint)


def run(model, params, head, inputs, tree=None, vectors=None):
  """Our logits with prefixes, or with a prompt."""
  backbone = model.backbone.adapted(Prefix(P))

  @jax.jit
  def logits(params, head, tree, vectors, inputs):
    mask, x, skipped = (
      backbone.mask(inputs),
      backbone.embed(params, inputs),
      0,
    )
    held = mask
    if vectors is not None:
      x, held = prompt.prepend(vectors, x, mask)
      skipped = len(vectors)
    span = Span(0, backbone.blocks, (params['blocks'], tree))
    x = backbone.run([span], x, held)[:, skipped:]
    return backbone.logits(params, head, backbone.features(params, x, mask))

  tree = None if tree is None else jax.tree.map(jnp.asarray, tree)
  return np.asarray(logits(params, head, tree, vectors, inputs))


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    (kind, name)
    for name, task in CASES.items()
    for kind in ('prefix', 'prompt')
    if kind == 'prompt' or task == 'CAUSAL_LM'
  ],
)
@pytest.mark.filterwarnings('ignore')  # PEFT's of transformers
def test_peft_gives_our_logits(kind, name, tmp_path):
  theirs = pytest.importorskip('peft', reason='parity needs peft')
  base, checkpoint, (model, params, head) = reference(name, tmp_path)
  task, folder = CASES[name], tmp_path / 'adapter'
  head = jax.tree.map(lambda x: x + 0.1, head)  # trained, too
  kwargs = {'base': 'here', 'task': task, 'head': head or None}
  inputs = references.tokens()
  if kind == 'prompt' and task == 'SEQ_CLS':
    inputs = np.abs(inputs) + (inputs < 0)  # it reads the last position
  given = references.torch_tokens(inputs)
  if kind == 'prefix':
    tree = prefixes(params['blocks'])
    heads = checkpoint.config['num_key_value_heads']
    peft_prompts.save_prefix(folder, model, tree, heads, **kwargs)
    ours = run(model, params, head, inputs, tree=tree)
  else:
    width = params['blocks']['norm1']['scale'].shape[-1]
    vectors = np.random.default_rng(0).normal(size=(P, width))
    vectors = vectors.astype(np.float32)
    peft_prompts.save_prompt(folder, model, vectors, **kwargs)
    ours = run(model, params, head, inputs, vectors=vectors)
  plain = base(**given).logits.detach().numpy()
  adapted = theirs.PeftModel.from_pretrained(base, folder).eval()
  out = adapted(**given).logits.detach().numpy()
  if out.ndim == 3:
    out = out[:, -inputs.shape[1] :]  # a prompt has logits of its own
  shown = inputs >= 0 if ours.ndim == 3 else slice(None)
  assert np.abs(ours - out)[shown].max() < 1e-4
  assert np.abs(plain - out)[shown].max() > 1e-2
