"""Loaded models give the numbers of the reference implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.adapters import lora
from fedms_jax.core.types import Span
from fedms_jax.models import pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import model_export, model_files
from tests.models import references
from tests.models.references import close

torch = pytest.importorskip('torch', reason='parity needs torch')
pytest.importorskip('transformers', reason='parity needs transformers')


def compare(case: references.Case, inputs, folder, spread: float = 0.2):
  """Hidden states of every block and logits; gives (torch model, logits)."""
  theirs = references.build(case, spread=spread)
  checkpoint = references.reopen(theirs, folder)
  model, params, head = references.load(case, checkpoint)
  with torch.no_grad():
    given = references.given(case, inputs)
    out = theirs(**given, output_hidden_states=True)
  states, features, logits = references.walk(
    model.backbone, params, head, inputs
  )
  mask = model.backbone.mask(inputs)
  assert len(states) == len(out.hidden_states)
  for state, expected in zip(states[:-1], out.hidden_states, strict=False):
    close(state, expected, mask)
  if case.model.startswith(references.DECODERS):
    # There, the last of the hidden states has gone through the final norm.
    if case.options.head == 'causal_lm':
      close(features, out.hidden_states[-1], mask)
  else:
    close(states[-1], out.hidden_states[-1], mask)
  close(logits, out.logits, mask if logits.ndim == 3 else None)


@pytest.mark.parametrize('name', references.CASES)
def test_every_block_and_the_logits_equal_the_reference(name, tmp_path):
  case = references.CASES[name]
  images = case.inputs == 'images'
  inputs = references.images() if images else references.tokens()
  compare(case, inputs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
  'case',
  [
    references.Case('Bert', 'BertForMaskedLM', {}, references.MLM),
    references.Case('GPT2', 'GPT2LMHeadModel', {}, references.LM),
  ],
  ids=['bert_base', 'gpt2_small'],
)
def test_parity_holds_at_the_true_shape(case, tmp_path):
  inputs = references.tokens(2, 48, vocabulary=20000)
  compare(case, inputs, tmp_path, spread=0.005)


def test_segments_of_a_pair_have_their_own_type(tmp_path):
  case = references.CASES['bert']
  theirs = references.build(case)
  checkpoint = references.reopen(theirs, tmp_path)
  model, params, head = references.load(case, checkpoint)
  inputs = references.tokens()
  types = (np.arange(9) > 3).astype(np.int32) * np.ones_like(inputs)
  given = references.torch_tokens(inputs)
  with torch.no_grad():
    token_types = torch.from_numpy(types.astype(np.int64))
    expected = theirs(**given, token_type_ids=token_types).logits
  both = np.stack([inputs, types], axis=1)
  _, _, logits = references.walk(model.backbone, params, head, both)
  close(logits, expected)


def test_mean_pooling_is_that_of_sentence_encoders(tmp_path):
  config = references.WORDS
  case = references.Case(
    'Bert', 'BertModel', config, Options(pooling='mean'), keep_head=False
  )
  theirs = references.build(case)
  checkpoint = references.reopen(theirs, tmp_path)
  model, params, _ = references.load(case, checkpoint)
  inputs = references.tokens()
  given = references.torch_tokens(inputs)
  with torch.no_grad():
    states = theirs(**given).last_hidden_state
  weights = given['attention_mask'][..., None].float()
  expected = (states * weights).sum(1) / weights.sum(1)
  close(pretrained.encode(model.backbone, params, inputs), expected)


@pytest.mark.parametrize('name', ['vit', 'bert', 'gpt2', 'llama_tied_llama3'])
def test_a_merged_model_leaves_for_the_reference(name, tmp_path):
  case = references.CASES[name]
  theirs = references.build(case)
  checkpoint = references.reopen(theirs, tmp_path / 'in')
  model, params, head = references.load(case, checkpoint)
  targets = ('attn/q', 'attn/v', 'mlp/down')
  spec = lora.Spec(2, 4.0, targets)
  adapter = spec.init(jax.random.key(0), params['blocks'])
  adapter = jax.tree.map(lambda x: x + 0.05, adapter)
  merged = lora.merge(params['blocks'], adapter, spec.scale)
  params = params | {'blocks': merged}
  model_export.save(model, params, tmp_path / 'out', checkpoint, head=head)
  again, info = type(theirs).from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  images = case.inputs == 'images'
  inputs = references.images() if images else references.tokens()
  given = references.given(case, inputs)
  with torch.no_grad():
    expected = again.eval()(**given).logits
    before = theirs(**given).logits
  _, _, logits = references.walk(model.backbone, params, head, inputs)
  mask = model.backbone.mask(inputs) if logits.ndim == 3 else None
  close(logits, expected, mask)
  assert (expected - before).abs().max() > 0.01


def test_gradients_of_lora_equal_those_of_peft(tmp_path):
  peft = pytest.importorskip('peft', reason='gradients are compared with PEFT')
  case = references.CASES['llama']
  theirs = references.build(case)
  checkpoint = references.reopen(theirs, tmp_path)
  model = pretrained.model(checkpoint.config, case.options)
  params, _ = model_files.load(model, checkpoint)
  ours = {
    'attn/q': 'self_attn.q_proj',
    'attn/v': 'self_attn.v_proj',
    'mlp/up': 'mlp.up_proj',
  }
  blocks = params['blocks']
  lora_spec = lora.Spec(2, 8.0, tuple(ours))
  adapter = lora_spec.init(jax.random.key(0), blocks)
  keys = iter(jax.random.split(jax.random.key(1), 6))
  adapter = jax.tree.map(
    lambda x: 0.1 * jax.random.normal(next(keys), x.shape), adapter
  )
  names = [name.split('.')[-1] for name in ours.values()]
  spec = peft.LoraConfig(r=2, lora_alpha=8, target_modules=names)
  adapted = peft.get_peft_model(theirs, spec)
  layers = adapted.base_model.model.model.layers
  modules = [
    (path, block, layers[block].get_submodule(name))
    for path, name in ours.items()
    for block in range(2)
  ]

  def of(tree, path, side):
    top, leaf = path.split('/')
    return np.asarray(tree[top][leaf][side])

  for path, block, module in modules:
    for side, layer in (('a', module.lora_A), ('b', module.lora_B)):
      value = torch.from_numpy(of(adapter, path, side)[block].T.copy())
      layer['default'].weight.data = value
  inputs = references.tokens()
  given = references.torch_tokens(inputs)
  labels = torch.from_numpy(np.where(inputs < 0, -100, inputs).astype(np.int64))
  loss = adapted(**given, labels=labels).loss
  loss.backward()

  @jax.jit
  @jax.value_and_grad
  def measured(adapter):
    backbone, mask = model.backbone.adapted(lora_spec), inputs >= 0
    spans = [Span(0, backbone.blocks, (blocks, adapter))]
    x = backbone.run(spans, backbone.embed(params, inputs), mask)
    logits = backbone.logits(params, {}, backbone.features(params, x, mask))
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits[:, :-1], np.maximum(inputs, 0)[:, 1:]
    )
    return jnp.sum(losses * mask[:, 1:]) / mask[:, 1:].sum()

  value, gradient = measured(adapter)
  np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
  for path, block, module in modules:
    for side, layer in (('a', module.lora_A), ('b', module.lora_B)):
      expected = layer['default'].weight.grad.numpy().T
      error = of(gradient, path, side)[block] - expected
      assert np.linalg.norm(error) < 1e-4 * np.linalg.norm(expected)
