"""Adapters in PEFT's files: our own round trip, and parity with PEFT."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedms_jax.adapters import lora
from fedms_jax.core.types import Span
from fedms_jax.models import pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import peft
from tests.models import references

RANK, ALPHA = 2, 3.0
WORDS = {'model_type': 'bert', **references.WORDS}
KINDS = {
  'bert': (WORDS, ('attn/q', 'mlp/up')),
  'vit': ({'model_type': 'vit', **references.PATCHES}, ('attn/o',)),
  'gpt2': ({'model_type': 'gpt2', **references.GPT2}, ('attn/v', 'attn/q')),
  'llama': (
    {'model_type': 'llama', **references.GROUPED},
    ('attn/k', 'mlp/gate'),
  ),
  'phi3': (
    {'model_type': 'phi3', **references.PHI3},
    ('attn/v', 'attn/q', 'mlp/up'),
  ),
  'clip': (
    {'model_type': 'clip', **references.CLIP_PARTS},
    ('attn/q', 'mlp/down'),
  ),
}


def adapter(model, targets, seed=0, rank=RANK):
  """Random LoRA, whose lowest block was never active."""
  key = jax.random.key(seed)
  base = jax.eval_shape(model.backbone.init, key)
  fresh = lora.Spec(rank, ALPHA, tuple(targets)).init(key, base['blocks'])
  rng = np.random.default_rng(seed)

  def moved(path, x):
    noise = 0.3 * rng.normal(size=x.shape).astype(np.float32)
    if path[-1].key == 'b':
      noise[0] = 0
    return np.asarray(x) + noise

  return jax.tree_util.tree_map_with_path(moved, fresh)


def made(kind):
  config, targets = KINDS[kind]
  pooling = 'pooler' if kind == 'bert' else ''
  options = Options(classes=3, pooling=pooling)
  return pretrained.model(config, options), targets


def save(folder, model, tree, **kwargs):
  kwargs = {
    'rank': RANK, 'alpha': ALPHA, 'base': 'here', 'modules': (),
  } | kwargs  # fmt: skip
  peft.save(folder, model, tree, **kwargs)


def load(folder, model, targets, rank=RANK, scale=ALPHA / RANK):
  start = adapter(model, targets, seed=9, rank=rank)
  return peft.load(folder, model, start, scale=scale)


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_saved_is_loaded_bit_by_bit(kind, tmp_path):
  model, targets = made(kind)
  tree = adapter(model, targets)
  save(tmp_path, model, tree)
  found, head = load(tmp_path, model, targets)
  equal(found, tree)
  assert head is None


def test_the_head_goes_with_the_adapter_and_comes_back(tmp_path):
  model, targets = made('bert')
  head = model.backbone.init_head(jax.random.key(4))
  save(tmp_path, model, adapter(model, targets), head=head)
  equal(load(tmp_path, model, targets)[1], head)
  config = json.loads((tmp_path / peft.CONFIG).read_text())
  assert config['modules_to_save'] == ['classifier']


def test_modules_of_the_bare_model_are_found_too(tmp_path):
  model, targets = made('bert')
  tree = adapter(model, targets)
  save(tmp_path, model, tree, bare=True)
  names = load_file(tmp_path / peft.WEIGHTS)
  assert all(n.startswith('base_model.model.encoder.') for n in names)
  equal(load(tmp_path, model, targets)[0], tree)


def test_another_scale_is_put_into_b(tmp_path):
  model, targets = made('bert')
  tree = adapter(model, targets)
  save(tmp_path, model, tree)
  found, _ = load(tmp_path, model, targets, scale=0.5)
  ours, theirs = lora.products(found), lora.products(tree)
  for name, update in ours.items():
    np.testing.assert_allclose(
      0.5 * update, ALPHA / RANK * theirs[name], atol=1e-5
    )


def test_short_names_only_where_they_mean_one_tower(tmp_path):
  model, targets = made('clip')
  tree = adapter(model, targets)
  towers = [
    f'{tower}_model.encoder.layers.{block}.{end}'
    for tower in ('text', 'vision')
    for block in range(3)
    for end in ('self_attn.q_proj', 'mlp.fc2')
  ]
  for modules, count in ((towers, 2 * model.backbone.blocks), (towers[6:], 2)):
    save(tmp_path, model, tree, modules=modules)
    config = json.loads((tmp_path / peft.CONFIG).read_text())
    assert len(config['target_modules']) == count


def test_blocks_that_the_adapter_leaves_out_stay_as_they_start(tmp_path):
  model, targets = made('vit')
  save(tmp_path, model, adapter(model, targets))
  tensors = load_file(tmp_path / peft.WEIGHTS)
  kept = {k: v for k, v in tensors.items() if '.layer.0.' not in k}
  save_file(kept, tmp_path / peft.WEIGHTS)
  found, _ = load(tmp_path, model, targets)
  start = adapter(model, targets, seed=9)
  equal(found['attn']['o']['b'][0], start['attn']['o']['b'][0])
  assert np.any(found['attn']['o']['b'][1] != start['attn']['o']['b'][1])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'use_dora': True}, 'use_dora=True'),
    ({'peft_type': 'IA3'}, "peft_type='IA3'"),
    ({'bias': 'all'}, "bias='all'"),
  ],
)
def test_what_is_no_plain_lora_is_refused(change, message, tmp_path):
  model, targets = made('bert')
  save(tmp_path, model, adapter(model, targets))
  file = tmp_path / peft.CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    load(tmp_path, model, targets)


def test_other_targets_and_ranks_are_refused_with_the_flag(tmp_path):
  model, targets = made('bert')
  save(tmp_path, model, adapter(model, targets))
  with pytest.raises(ValueError, match='adapts mlp/up too.*`Spec.targets`'):
    load(tmp_path, model, ('attn/q',))
  with pytest.raises(ValueError, match='Give `Spec.rank`=2'):
    load(tmp_path, model, targets, rank=1)
  tensors = load_file(tmp_path / peft.WEIGHTS)
  tensors['base_model.model.bert.pooler.dense.lora_A.weight'] = np.zeros((2, 2))
  save_file(tensors, tmp_path / peft.WEIGHTS)
  with pytest.raises(ValueError, match='pooler.dense.lora_A'):
    load(tmp_path, model, targets)
  with pytest.raises(ValueError, match='has no adapter_config.json'):
    load(tmp_path / 'nowhere', model, targets)


CASES = {
  'bert': (('attn/q', 'mlp/up'), 'SEQ_CLS'),
  'roberta': (('attn/v',), None),
  'vit': (('attn/q', 'mlp/down'), None),
  'gpt2': (('attn/q', 'attn/v', 'mlp/up'), 'CAUSAL_LM'),
  'gpt2_classes': (('attn/k', 'attn/o'), 'SEQ_CLS'),
  'llama': (('attn/q', 'attn/k', 'mlp/gate'), 'CAUSAL_LM'),
  'gemma3': (('attn/q', 'attn/k', 'mlp/gate'), 'CAUSAL_LM'),
  'phi3': (('attn/q', 'attn/v', 'mlp/gate'), 'CAUSAL_LM'),
}


def reference(name):
  """(case, torch model, inputs, inputs as torch has them)."""
  case = references.CASES[name]
  if case.inputs == 'images':
    inputs = references.images()
    given = {'pixel_values': references.pixels(inputs, (0.5,) * 3, (0.5,) * 3)}
  else:
    inputs = references.tokens()
    given = references.torch_tokens(inputs, 1 if case.kind == 'Roberta' else 0)
  return case, references.build(case), inputs, given


def logits(model, params, head, tree, inputs):
  """Our logits with LoRA."""
  backbone = model.backbone.adapted(lora.Spec(RANK, ALPHA, ()))

  @jax.jit
  def run(params, head, tree, inputs):
    mask = backbone.mask(inputs)
    span = Span(0, backbone.blocks, (params['blocks'], tree))
    x = backbone.run([span], backbone.embed(params, inputs), mask)
    features = backbone.features(params, x, mask)
    return backbone.logits(params, head, features)

  return np.asarray(run(params, head, jax.tree.map(jnp.asarray, tree), inputs))


def close(ours, theirs, inputs):
  theirs = theirs.detach().numpy()
  shown = inputs >= 0 if ours.ndim == 3 else slice(None)
  assert np.abs(ours - theirs)[shown].max() < 1e-4


@pytest.mark.parametrize('name', CASES)
def test_peft_gives_our_logits_with_our_adapter(name, tmp_path):
  theirs = pytest.importorskip('peft', reason='parity needs peft')
  targets, task = CASES[name]
  case, base, inputs, given = reference(name)
  checkpoint = references.reopen(base, tmp_path / 'base')
  model, params, head = references.load(case, checkpoint)
  tree = adapter(model, targets)
  head = jax.tree.map(lambda x: x + 0.1, head)  # trained, too
  modules = {n.removesuffix('.weight') for n in checkpoint.tensors}
  folder = tmp_path / 'adapter'
  save(folder, model, tree, modules=modules, task=task, head=head or None)
  ours = logits(model, params, head, tree, inputs)
  plain = base(**given).logits.detach().numpy()
  adapted = theirs.PeftModel.from_pretrained(base, folder).eval()
  out = adapted(**given).logits
  close(ours, out, inputs)
  assert np.abs(plain - out.detach().numpy()).max() > 1e-2


@pytest.mark.parametrize('name', CASES)
def test_our_logits_are_peft_s_with_its_adapter(name, tmp_path):
  theirs = pytest.importorskip('peft', reason='parity needs peft')
  import torch

  targets, task = CASES[name]
  case, base, inputs, given = reference(name)
  checkpoint = references.reopen(base, tmp_path / 'base')
  model, params, head = references.load(case, checkpoint)
  fused = name.startswith('gpt2')
  if fused or name == 'phi3':  # its one module for q, k and v adapts all three
    targets = {'attn/q', 'attn/k', 'attn/v', *targets}
  if name == 'phi3':
    targets |= {'mlp/up'}
  save(tmp_path / 'names', model, adapter(model, targets))
  modules = json.loads((tmp_path / 'names' / peft.CONFIG).read_text())
  modules = modules['target_modules']
  config = theirs.LoraConfig(
    r=RANK,
    lora_alpha=7,
    target_modules=modules,
    use_rslora=True,
    alpha_pattern={modules[0]: 5},
    fan_in_fan_out=fused,
    task_type=task,
    init_lora_weights=False,
  )
  torch.manual_seed(1)
  adapted = theirs.get_peft_model(base, config).eval()
  adapted.save_pretrained(tmp_path / 'adapter')
  tree, own = load(tmp_path / 'adapter', model, sorted(targets))
  ours = logits(model, params, own or head, tree, inputs)
  close(ours, adapted(**given).logits, inputs)
