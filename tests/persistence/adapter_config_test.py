"""What an adapter asks for is honored, or refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedms_jax.persistence import adapter_config, peft
from tests.persistence import peft_test
from tests.persistence.damaged_files_test import DAMAGES, TEXTS

PLAIN = {'peft_type': 'LORA', 'r': 4, 'lora_alpha': 8}


def read(folder, **values):
  (folder / adapter_config.CONFIG).write_text(json.dumps(PLAIN | values))
  return adapter_config.read(folder)


@pytest.mark.parametrize(
  'start', ['pissa', 'pissa_niter_4', 'olora', 'loftq', 'corda', 'lora_ga',
            'mica', 'anything', 1, [], {}]
)  # fmt: skip
def test_a_start_that_changes_the_base_is_refused(start, tmp_path):
  with pytest.raises(ValueError, match='init_lora_weights.*Convert it'):
    read(tmp_path, init_lora_weights=start)


@pytest.mark.parametrize(
  'start', [None, True, False, 'gaussian', 'eva', 'orthogonal']
)
def test_a_start_that_leaves_the_base_is_read(start, tmp_path):
  assert not read(tmp_path, init_lora_weights=start, eva_config={}).unread


@pytest.mark.parametrize(
  'values',
  [
    {'use_dora': True},
    {'use_qalora': True},
    {'use_bdlora': {'nblocks': 2}},
    {'lora_bias': True},
    {'bias': 'lora_only'},
    {'peft_type': 'ADALORA'},
    {'layer_replication': [[0, 1], [0, 2]]},
    {'alora_invocation_tokens': [1, 2]},
    {'arrow_config': {'top_k': 2}},
    {'trainable_token_indices': [3]},
    {'target_parameters': ['experts']},
    {'r': 0},
    {'r': 2.0},
    {'r': '4'},
    {'lora_alpha': 'x'},
    {'use_rslora': 'yes'},
    {'alpha_pattern': ['q']},
    {'alpha_pattern': {'q': 'x'}},
    {'rank_pattern': {'q': 0}},
  ],
)
def test_what_is_no_plain_lora_is_refused_by_name(values, tmp_path):
  with pytest.raises(ValueError, match=next(iter(values))):
    read(tmp_path, **values)


def test_words_that_nobody_knows_are_told(tmp_path, capsys):
  found = read(tmp_path, new_trick=True, megatron_core='megatron.core')
  assert found.unread == ('new_trick',)


def test_patterns_are_ends_of_names_and_the_first_holds(tmp_path):
  found = read(
    tmp_path,
    alpha_pattern={'attn.q': 16, r'h\.1\.mlp': 3, 'q': 5, '^whole': 7},
    rank_pattern={'q': 2},
  )
  assert found.scale('h.0.attn.q') == 16 / 2
  assert found.scale('h.1.mlp') == 3 / 4
  assert found.scale('h.0.cross.q') == 5 / 2
  assert found.scale('whole') == 7 / 4
  assert found.scale('not.whole') == found.scale('h.0.eq') == 8 / 4


def test_rslora_divides_by_the_root_of_the_rank(tmp_path):
  found = read(tmp_path, use_rslora=True, rank_pattern={'q': 9})
  assert found.scale('h.v') == 8 / 2 and found.scale('h.q') == 8 / 3


@pytest.mark.parametrize('key', ['alpha_pattern', 'rank_pattern'])
@pytest.mark.parametrize(
  'pattern', ['([a-z.0-9]+)+!', '(', '.*q', 'q|v', 'q$', r'layers\.\d+\.q',
              '[qv]', 'q?', '']
)  # fmt: skip
def test_no_pattern_runs_as_a_regular_expression(key, pattern, tmp_path):
  with pytest.raises(ValueError, match=key):
    read(tmp_path, **{key: {pattern: 1}})


def saved(folder, kind='bert', **kwargs):
  model, targets = peft_test.made(kind)
  peft_test.save(folder, model, peft_test.adapter(model, targets), **kwargs)
  return model, targets


@pytest.mark.parametrize('text', TEXTS)
def test_a_broken_config_is_refused_by_file(text, tmp_path):
  model, targets = saved(tmp_path)
  value = TEXTS[text]
  data = value if isinstance(value, bytes) else value.encode()
  (tmp_path / adapter_config.CONFIG).write_bytes(data)
  with pytest.raises(ValueError, match='adapter_config.json'):
    peft_test.load(tmp_path, model, targets)


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_tensors_are_refused_by_file(damage, tmp_path):
  model, targets = saved(tmp_path)
  (tmp_path / peft.WEIGHTS).write_bytes(DAMAGES[damage])
  with pytest.raises(ValueError, match=r'adapter_model\.safetensors'):
    peft_test.load(tmp_path, model, targets)


def test_integers_are_no_adapter(tmp_path):
  model, targets = saved(tmp_path)
  found = load_file(tmp_path / peft.WEIGHTS)
  ints = {k: v.astype(np.int32) for k, v in found.items()}
  save_file(ints, tmp_path / peft.WEIGHTS)
  with pytest.raises(ValueError, match='of type I32'):
    peft_test.load(tmp_path, model, targets)


def test_ranks_of_the_config_are_those_of_the_tensors(tmp_path):
  model, targets = saved(tmp_path)
  file = tmp_path / peft.CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | {'r': 7}))
  with pytest.raises(ValueError, match='says 7'):
    peft_test.load(tmp_path, model, targets)


def headed(folder, labels=()):
  model, targets = peft_test.made('bert')
  rng = np.random.default_rng(0)
  head = {'kernel': rng.normal(size=(32, 3)), 'bias': np.arange(3.0)}
  head = {key: x.astype(np.float32) for key, x in head.items()}
  tree = peft_test.adapter(model, targets)
  peft_test.save(folder, model, tree, head=head, labels=labels)
  return model, peft_test.adapter(model, targets, seed=9), head


def test_the_head_of_an_adapter_comes_in_the_order_of_the_data(tmp_path):
  model, start, head = headed(tmp_path, ('food', 'sky', 'sport'))
  names = ('sport', 'Food', 'sky')
  found = peft.load(tmp_path, model, start, scale=1.0, labels=names)[1]
  for key, value in head.items():
    np.testing.assert_array_equal(found[key], value[..., [2, 0, 1]])
  with pytest.raises(ValueError, match='knows the classes food'):
    peft.load(tmp_path, model, start, scale=1.0, labels=('a', 'b', 'c'))


def test_a_head_that_names_no_classes_stays_as_it_is(tmp_path):
  model, start, head = headed(tmp_path)
  found = peft.load(tmp_path, model, start, scale=1.0, labels=('b', 'a', 'c'))
  peft_test.equal(found[1], head)


def test_the_head_of_an_adapter_is_refused_on_another_feature(tmp_path):
  model, start, head = headed(tmp_path)
  with pytest.raises(ValueError, match='`Options.pooling`'):
    peft.load(tmp_path, model._replace(reference=''), start, scale=1.0)
  with pytest.raises(ValueError, match='no class of transformers'):
    peft_test.save(tmp_path, model._replace(reference=''), start, head=head)
