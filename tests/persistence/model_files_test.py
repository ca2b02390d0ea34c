"""Files to parameters and back, without the reference implementation."""

from __future__ import annotations

import json
import subprocess
import sys

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.utils
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedms_jax.adapters import lora
from fedms_jax.models import pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import (
  model_export,
  model_files,
  peft_names,
  tensors,
)
from tests.models.references import (
  CLIP_PARTS,
  DINO,
  DISTIL,
  GEMMA2,
  GEMMA3,
  GPT2,
  GROUPED,
  PATCHES,
  PHI3,
  QWEN2,
  QWEN3,
  SIGLIP_PARTS,
  WORDS,
  weights,
)

CONFIGS = {
  'vit': ({'model_type': 'vit', **PATCHES}, Options(classes=3)),
  'deit': ({'model_type': 'deit', **PATCHES}, Options(classes=3)),
  'bert': (
    {'model_type': 'bert', **WORDS},
    Options(classes=3, pooling='pooler'),
  ),
  'roberta': ({'model_type': 'roberta', **WORDS}, Options(head='masked_lm')),
  'distilbert': (
    {'model_type': 'distilbert', **DISTIL},
    Options(classes=3, pooling='pooler'),
  ),
  'gpt2': ({'model_type': 'gpt2', **GPT2}, Options(head='causal_lm')),
  'llama': ({'model_type': 'llama', **GROUPED}, Options(head='causal_lm')),
  'mistral': (
    {'model_type': 'mistral', **GROUPED, 'sliding_window': 4},
    Options(head='causal_lm'),
  ),
  'gemma2': ({'model_type': 'gemma2', **GEMMA2}, Options(head='causal_lm')),
  'gemma3': (
    {'model_type': 'gemma3_text', **GEMMA3},
    Options(head='causal_lm'),
  ),
  'phi3': ({'model_type': 'phi3', **PHI3}, Options(head='causal_lm')),
  'qwen2': ({'model_type': 'qwen2', **QWEN2}, Options(head='causal_lm')),
  'qwen3': ({'model_type': 'qwen3', **QWEN3}, Options(head='causal_lm')),
  'dinov2': ({'model_type': 'dinov2', **DINO}, Options(classes=3)),
  'dinov2_with_registers': (
    {'model_type': 'dinov2_with_registers', **DINO, 'patch_size': 4},
    Options(classes=3, image_side=24),
  ),
  'clip_vision_model': (
    {'model_type': 'clip_vision_model', **PATCHES},
    Options(classes=3),
  ),
  'clip_text_model': (
    {'model_type': 'clip_text_model', **CLIP_PARTS['text_config']},
    Options(classes=3, pooling='projected'),
  ),
  'siglip': (
    {'model_type': 'siglip', **SIGLIP_PARTS},
    Options(head='contrast', tower='both'),
  ),
  'siglip_vision_model': (
    {'model_type': 'siglip_vision_model', **PATCHES},
    Options(classes=3),
  ),
  'siglip_text_model': (
    {'model_type': 'siglip_text_model', **SIGLIP_PARTS['text_config']},
    Options(classes=3),
  ),
  'clip': (
    {'model_type': 'clip', **CLIP_PARTS},
    Options(head='contrast', tower='both'),
  ),
}


def write(folder, config, options):
  """A folder with random weights, and (model, params, head) in it."""
  model = pretrained.model(config, options)
  params, head = weights(model)
  empty = model_files.Checkpoint(folder, config, {}, {})
  own = head if model.reference else None
  model_export.save(model, params, folder, empty, head=own)
  return model, params, head


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('kind', CONFIGS)
def test_what_is_saved_is_loaded_bit_by_bit(kind, tmp_path, monkeypatch):
  monkeypatch.setattr(tensors, 'PART', 300)  # several parts for each tensor
  config, options = CONFIGS[kind]
  model, params, head = write(tmp_path, config, options)
  again = model_files.find(str(tmp_path))
  assert config.items() <= again.config.items()
  known = model.reference or model.featured
  assert again.config.get('architectures', ['AutoModel']) == [known]
  assert again.config['dtype'] == 'float32'
  loaded, own = model_files.load(model, again, head=bool(model.reference))
  equal(loaded, params)
  if model.reference:
    equal(own, head)
  assert model_files.load(model, again)[1] is None


def edit(folder, change):
  """Rewrites the tensors of a folder."""
  tensors = load_file(folder / model_files.WEIGHTS)
  save_file(change(tensors), folder / model_files.WEIGHTS)
  return model_files.find(str(folder))


def test_missing_extra_and_misshapen_tensors_are_listed(tmp_path):
  model, _, _ = write(tmp_path, *CONFIGS['llama'])

  def spoil(tensors):
    del tensors['model.layers.1.mlp.up_proj.weight']
    tensors['model.norm.weight'] = np.zeros(7, np.float32)
    tensors['model.layers.2.mlp.up_proj.weight'] = np.zeros((2, 2), np.float32)
    return tensors

  checkpoint = edit(tmp_path, spoil)
  with pytest.raises(ValueError) as error:
    model_files.load(model, checkpoint)
  text = str(error.value)
  assert 'missing: model.layers.1.mlp.up_proj.weight [48, 32]' in text
  assert 'wrong shape: model.norm.weight [7], the model has [32]' in text
  assert 'extra: model.layers.2.mlp.up_proj.weight [2, 2]' in text


def test_optional_parts_may_lack_or_lie_beside(tmp_path):
  config, _ = CONFIGS['bert']
  model, params, _ = write(tmp_path, config, Options(classes=3))
  assert not params['final']  # no pooler was asked for, and none is there

  def add(tensors):
    return tensors | {
      'bert.embeddings.position_ids': np.arange(20),
      'bert.pooler.dense.weight': np.zeros((32, 32), np.float32),
      'cls.seq_relationship.bias': np.zeros(2, np.float32),
    }

  loaded, _ = model_files.load(model, edit(tmp_path, add))
  equal(loaded, params)


def test_files_of_the_bare_model_and_old_names_of_norms_load(tmp_path):
  config, _ = CONFIGS['bert']
  model, params, _ = write(tmp_path, config, Options(classes=3))

  def bare(tensors):
    out = {}
    for name, tensor in tensors.items():
      if name.startswith('bert.'):
        name = name.removeprefix('bert.')
        name = name.replace('LayerNorm.weight', 'LayerNorm.gamma')
        out[name.replace('LayerNorm.bias', 'LayerNorm.beta')] = tensor
    return out

  checkpoint = edit(tmp_path, bare)
  assert 'embeddings.LayerNorm.gamma' in checkpoint.tensors
  equal(model_files.load(model, checkpoint)[0], params)


def test_sharded_files_load_by_their_index(tmp_path):
  model, params, _ = write(tmp_path, *CONFIGS['gpt2'])
  file = tmp_path / model_files.WEIGHTS
  tensors = load_file(file)
  names = sorted(tensors)
  parts = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
  for part, own in parts.items():
    save_file({name: tensors[name] for name in own}, tmp_path / part)
  weight_map = {name: part for part, own in parts.items() for name in own}
  index = json.dumps({'weight_map': weight_map})
  (tmp_path / model_files.INDEX).write_text(index)
  file.unlink()
  equal(model_files.load(model, model_files.find(str(tmp_path)))[0], params)
  (tmp_path / 'b.safetensors').unlink()
  with pytest.raises(ValueError, match=r'not there: b\.safetensors'):
    model_files.find(str(tmp_path))


def test_pickles_are_refused_with_the_way_out(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  with pytest.raises(ValueError, match='runs the code.*save_pretrained'):
    model_files.find(str(tmp_path))
  # A description alone needs no weights.
  assert not model_files.find(str(tmp_path), weights=False).tensors


def test_a_hub_id_is_found_in_the_cache_when_offline(tmp_path, monkeypatch):
  monkeypatch.setattr(
    huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub')
  )
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  repository = tmp_path / 'hub' / 'models--someone--small'
  snapshot = repository / 'snapshots' / ('0' * 40)
  snapshot.mkdir(parents=True)
  (repository / 'refs').mkdir()
  (repository / 'refs' / 'main').write_text('0' * 40)
  model, params, _ = write(snapshot, *CONFIGS['gpt2'])
  found = model_files.find('someone/small')
  equal(model_files.load(model, found)[0], params)
  with pytest.raises(ValueError, match='someone/other.*hub'):
    model_files.find('someone/other')
  with pytest.raises(ValueError, match='neither a folder nor a hub id'):
    model_files.find('./a/b/c')


def test_only_what_a_model_needs_is_downloaded(tmp_path, monkeypatch):
  write(tmp_path, *CONFIGS['gpt2'])
  asked = {}

  def download(name, **kwargs):
    asked.update(kwargs)
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  files = {
    'config.json': True,
    'tokenizer.json': True,
    'model.safetensors.index.json': True,
    'model-00001-of-00002.safetensors': True,
    'pytorch_model.bin': False,
    'onnx/model.safetensors': False,
    'original/consolidated.safetensors': False,
    'consolidated.safetensors': False,
    'adapter_model.safetensors': False,
  }

  def wanted():
    return set(
      huggingface_hub.utils.filter_repo_objects(
        files,
        allow_patterns=asked['allow_patterns'],
        ignore_patterns=asked['ignore_patterns'],
      )
    )

  model_files.find('someone/small', revision='v1')
  assert asked['revision'] == 'v1'
  assert wanted() == {name for name, use in files.items() if use}
  model_files.find('someone/small', weights=False)
  assert wanted() == {'config.json', 'tokenizer.json'}


def test_the_family_is_read_from_the_config():
  # A near name is not offered: under it, the numbers would be others.
  for kind in ('qwen2_moe', 'bertt', 'modernbert'):
    with pytest.raises(ValueError, match=f"'{kind}'.*Families: ") as error:
      pretrained.model({'model_type': kind}, Options())
    assert 'Did you mean' not in str(error.value)
  with pytest.raises(ValueError, match='Families: clip, clip_vision_model'):
    pretrained.model({}, Options())


def test_what_the_reference_computes_otherwise_is_refused():
  wrong = (
    ('bert', {'position_embedding_type': 'relative_key'}),
    ('bert', {'hidden_act': 'mish'}),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}),
    ('llama', {'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0}}),
    ('llama', {'num_key_value_heads': 3}),
  )
  for kind, change in wrong:
    config, options = CONFIGS[kind]
    with pytest.raises(ValueError, match='config.json'):
      pretrained.model(config | change, options)


def test_more_tokens_than_positions_are_refused():
  config, _ = CONFIGS['roberta']  # two of 20 positions are for padding
  pretrained.model(config, Options(head='masked_lm', tokens=18))
  with pytest.raises(ValueError, match='the 18 positions'):
    pretrained.model(config, Options(head='masked_lm', tokens=19))


def test_storage_is_the_type_of_all_but_scalars(tmp_path):
  config, _ = CONFIGS['clip']
  _, params, _ = write(tmp_path, *CONFIGS['clip'])
  options = Options(head='contrast', tower='both', storage='bfloat16')
  model = pretrained.model(config, options)
  loaded, _ = model_files.load(model, model_files.find(str(tmp_path)))
  scale = loaded['final'].pop('logit_scale')
  assert scale.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype('bfloat16')}
  del params['final']['logit_scale']
  equal(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_int8_kernels_round_by_at_most_half_a_unit(tmp_path):
  config, options = CONFIGS['gpt2']
  _, params, _ = write(tmp_path, config, options)
  model = pretrained.model(config, Options(head='causal_lm', storage='int8'))
  loaded, _ = model_files.load(model, model_files.find(str(tmp_path)))
  for layer in ('q', 'k', 'v', 'o'):
    exact, ours = (tree['blocks']['attn'][layer] for tree in (params, loaded))
    assert ours['kernel'].dtype == jnp.int8
    unit = np.asarray(ours['kernel_scale'])[:, None, :]
    np.testing.assert_allclose(
      unit[:, 0], np.abs(exact['kernel']).max(axis=1) / 127, rtol=1e-6
    )
    error = np.abs(np.asarray(ours['kernel']) * unit - exact['kernel'])
    assert (error <= 0.5001 * unit).all()
    np.testing.assert_array_equal(ours['bias'], exact['bias'])
  with pytest.raises(ValueError, match='int8'):
    empty = model_files.Checkpoint(tmp_path, config, {}, {})
    model_export.save(model, loaded, tmp_path / 'out', empty)


def test_leaves_go_straight_to_their_shards(tmp_path):
  model, params, _ = write(tmp_path, *CONFIGS['llama'])
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ('x',))
  split = jax.sharding.PartitionSpec(None, None, 'x')

  def place(path, leaf):
    spec = split if path.endswith('/kernel') else jax.sharding.PartitionSpec()
    return jax.sharding.NamedSharding(mesh, spec)

  checkpoint = model_files.find(str(tmp_path))
  loaded, _ = model_files.load(model, checkpoint, place=place)
  kernel = loaded['blocks']['attn']['q']['kernel']
  assert kernel.sharding.spec == split
  assert kernel.addressable_shards[0].data.shape == (2, 32, 8)
  equal(jax.device_get(loaded), params)


def test_saving_keeps_what_was_not_loaded(tmp_path):
  config, _ = CONFIGS['clip']
  write(tmp_path, *CONFIGS['clip'])
  (tmp_path / 'tokenizer.json').write_text('{}')
  source = model_files.find(str(tmp_path))
  model = pretrained.model(config, Options(classes=2))
  params, _ = model_files.load(model, source)
  doubled = jax.tree.map(lambda x: 2 * x, params)
  out = tmp_path / 'out'
  model_export.save(model, doubled, out, source)
  before = load_file(tmp_path / model_files.WEIGHTS)
  after = load_file(out / model_files.WEIGHTS)
  assert before.keys() == after.keys()
  for name, tensor in before.items():
    ours = name.startswith(('vision_model', 'visual_projection'))
    np.testing.assert_array_equal(after[name], tensor * (2 if ours else 1))
  assert (out / 'tokenizer.json').exists()
  again = json.loads((out / 'config.json').read_text())
  assert again['vision_config'] == config['vision_config']
  assert not [f for f in out.iterdir() if f.name.endswith('.tmp')]


PEAK = """
import pathlib, sys
import jax
from fedms_jax.adapters import lora
from fedms_jax.models import pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import model_files
def load(folder):
  found = model_files.find(folder)
  model = pretrained.model(found.config, Options(head='causal_lm'))
  return jax.block_until_ready(model_files.load(model, found)[0])
def kilobytes(name):
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return next(int(x.split()[1]) for x in lines if x.startswith(name))
load(sys.argv[1])
pathlib.Path('/proc/self/clear_refs').write_text('5')  # forgets the peak
before = kilobytes('VmRSS')
params = load(sys.argv[2])
print(1024 * (kilobytes('VmHWM') - before))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_the_host_never_holds_much_more_than_the_model(tmp_path):
  # A quarter of it is one tensor, as in small models of many words.
  shape = {'hidden_size': 512, 'intermediate_size': 1536, 'vocab_size': 24000}
  config = GROUPED | shape | {'num_hidden_layers': 12, 'model_type': 'llama'}
  config |= {'num_key_value_heads': 4, 'tie_word_embeddings': True}
  options = Options(head='causal_lm')
  write(tmp_path / 'small', *CONFIGS['llama'])
  write(tmp_path / 'large', config, options)
  size = (tmp_path / 'large' / model_files.WEIGHTS).stat().st_size
  assert size > 200e6
  folders = [str(tmp_path / name) for name in ('small', 'large')]
  out = subprocess.run(
    [sys.executable, '-c', PEAK, *folders],
    capture_output=True,
    text=True,
    check=True,
  )
  peak = int(out.stdout)
  assert size < peak < 1.3 * size, peak / size


@pytest.mark.parametrize('kind', CONFIGS)
def test_what_an_adapter_may_name_are_the_kernels_of_the_blocks(kind):
  """Norms within attention are none."""
  config, options = CONFIGS[kind]
  model = pretrained.model(config, options)
  shapes = jax.eval_shape(model.backbone.init, jax.random.key(0))
  assert set(peft_names.all_targets(model)) == set(
    lora.kernels(shapes['blocks'])
  )
