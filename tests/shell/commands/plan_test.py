"""Plans from config.json alone, at the shapes of real models."""

import json
import re

import pytest

from fedms_jax.shell import catalog, main

LLAMA_7B = {
  'model_type': 'llama',
  'hidden_size': 4096,
  'intermediate_size': 11008,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'vocab_size': 32000,
  'max_position_embeddings': 2048,
  'tie_word_embeddings': False,
}
CLIP_L14 = {
  'model_type': 'clip',
  'projection_dim': 768,
  'vision_config': {
    'hidden_size': 1024,
    'intermediate_size': 4096,
    'num_hidden_layers': 24,
    'num_attention_heads': 16,
    'patch_size': 14,
    'image_size': 224,
  },
  'text_config': {
    'hidden_size': 768,
    'intermediate_size': 3072,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'max_position_embeddings': 77,
    'vocab_size': 49408,
  },
}


# Config.json of published decoders, and how many parameters they have.
DECODERS = {
  'mistral_7b': (
    {
      'model_type': 'mistral',
      'hidden_size': 4096,
      'intermediate_size': 14336,
      'num_hidden_layers': 32,
      'num_attention_heads': 32,
      'num_key_value_heads': 8,
      'vocab_size': 32000,
      'max_position_embeddings': 32768,
      'sliding_window': 4096,
    },
    '7,241,732,096',
  ),
  'qwen2.5_0.5b': (
    {
      'model_type': 'qwen2',
      'hidden_size': 896,
      'intermediate_size': 4864,
      'num_hidden_layers': 24,
      'num_attention_heads': 14,
      'num_key_value_heads': 2,
      'vocab_size': 151936,
      'rope_theta': 1000000.0,
      'use_sliding_window': False,
      'tie_word_embeddings': True,
    },
    '494,032,768',
  ),
  'qwen3_0.6b': (
    {
      'model_type': 'qwen3',
      'hidden_size': 1024,
      'head_dim': 128,
      'intermediate_size': 3072,
      'num_hidden_layers': 28,
      'num_attention_heads': 16,
      'num_key_value_heads': 8,
      'vocab_size': 151936,
      'tie_word_embeddings': True,
    },
    '596,049,920',
  ),
  'smollm2_135m': (
    {
      'model_type': 'llama',
      'hidden_size': 576,
      'intermediate_size': 1536,
      'num_hidden_layers': 30,
      'num_attention_heads': 9,
      'num_key_value_heads': 3,
      'vocab_size': 49152,
      'is_llama_config': True,
      'rope_interleaved': False,
      'tie_word_embeddings': True,
    },
    '134,515,008',
  ),
  'gemma2_2b': ({'model_type': 'gemma2'}, '2,614,341,888'),
  'gemma3_1b': (
    {
      'model_type': 'gemma3_text',
      'hidden_size': 1152,
      'intermediate_size': 6912,
      'num_hidden_layers': 26,
      'num_attention_heads': 4,
      'num_key_value_heads': 1,
      'vocab_size': 262144,
      'max_position_embeddings': 32768,
      'sliding_window': 512,
      'sliding_window_pattern': 6,
      'rope_theta': 1000000.0,
      'rope_local_base_freq': 10000.0,
      'rope_scaling': None,
      'attn_logit_softcapping': None,
      'cache_implementation': 'hybrid',
    },
    '999,885,952',
  ),
  'phi3_mini': (
    {
      'model_type': 'phi3',
      'sliding_window': 2047,
      'auto_map': {
        'AutoConfig': 'configuration_phi3.Phi3Config',
        'AutoModelForCausalLM': 'modeling_phi3.Phi3ForCausalLM',
      },
    },
    '3,821,079,552',
  ),
  'phi4_mini': (
    {
      'model_type': 'phi3',
      'num_key_value_heads': 8,
      'num_attention_heads': 24,
      'vocab_size': 200064,
      'max_position_embeddings': 131072,
      'original_max_position_embeddings': 4096,
      'partial_rotary_factor': 0.75,
      'rope_scaling': {
        'type': 'longrope',
        'short_factor': [1.0] * 48,
        'long_factor': [2.0] * 48,
      },
      'sliding_window': 262144,
      'full_attn_mod': 1,
      'interpolate_factor': 1,
      'lm_head_bias': False,
      'tie_word_embeddings': True,
    },
    '3,836,021,760',
  ),
}

# What a text tower is for, and what is nothing to be trained of class prompts.
NEED_TEXT = (
  'fedclip', 'fedpgp', 'pfedmoap', 'pfedprompt', 'fedotp', 'pfedmma'
)  # fmt: skip
NEED_HEAD = (
  'linear_probe', 'fedper', 'fedrep', 'pfedlora', 'fedfn', 'fgl', 'femam',
  'ncm', 'ridge',
)  # fmt: skip
SMALL = {'num_hidden_layers': 2, 'hidden_size': 64, 'num_attention_heads': 2}


def plan(folder, config, *flags):
  (folder / 'config.json').write_text(json.dumps(config))
  return main.main(['fedms', 'plan', f'--model.name={folder}', *flags])


def table(text, stage):
  """Rows of a stage's table, by depth."""
  part = text.split(f'stage {stage}\n')[1].split('\n\n')[0]
  lines = [re.split(r'  +', line.strip()) for line in part.splitlines()[1:]]
  return {int(line[0]): line[1:] for line in lines}


def test_llama_7b_without_allocating_it(tmp_path, capsys):
  flags = (
    '--model.head=causal_lm', '--model.storage=bfloat16', '--lora.rank=8',
    '--data.max_tokens=512',
  )  # fmt: skip
  assert plan(tmp_path, LLAMA_7B, *flags) == 0
  text = capsys.readouterr().out
  assert '6,738,415,616 parameters' in text
  assert '4,194,304 parameters (0.062 %)' in text
  assert '13.5 GB as bfloat16' in text and 'T = 512' in text
  rows = table(text, 'fedms/global')
  assert list(rows) == [1, 2, 4, 8, 16, 32]
  # Rank 8 of q and v in one block: 4 x 4096 x 8 float32.
  assert rows[1][1] == '524 kB' and rows[32][1] == '16.8 MB'


@pytest.mark.parametrize('name', DECODERS)
def test_published_decoders_have_their_number_of_parameters(
  name, tmp_path, capsys
):
  config, expected = DECODERS[name]
  flags = ('--model.head=causal_lm', '--data.max_tokens=512')
  assert plan(tmp_path, config, *flags) == 0
  out, err = capsys.readouterr()
  assert f'{expected} parameters in ' in out
  assert 'config.json' not in err  # no key of it is unknown


def test_clip_l14_by_tower(tmp_path, capsys):
  flags = ('--model.head=contrast', '--model.tower=both')
  targets = '--lora.targets=image/attn/q,text/attn/q'
  assert plan(tmp_path, CLIP_L14, *flags, targets) == 0
  assert '427,616,513 parameters in 12 blocks' in capsys.readouterr().out
  assert plan(tmp_path, CLIP_L14, '--classes=3') == 0
  text = capsys.readouterr().out
  assert 'in 24 blocks' in text and 'T = 257' in text
  assert 'head: 2,307' in text  # 3 x (768 + 1)


def test_more_active_blocks_cost_more(tmp_path, capsys):
  plan(tmp_path, CLIP_L14)
  rows = table(capsys.readouterr().out, 'fedms/personal')
  flops = [float(row[3].split()[0]) for row in rows.values()]
  assert flops == sorted(flops) and flops[0] < flops[-1]


@pytest.mark.parametrize('name', catalog.METHODS)
def test_any_method_has_a_plan(name, tmp_path, capsys):
  small = CLIP_L14 | {
    key: CLIP_L14[key] | SMALL for key in ('vision_config', 'text_config')
  }
  heads = ['zero_shot'] * (name not in NEED_HEAD)
  heads += ['classification'] * (name not in NEED_TEXT)
  for head in heads:
    flags = [f'--model.head={head}', f'--algorithm.name={name}']
    # Of its two blocks none would be between the ends.
    flags += ['--fedpft.ends=0'] * (name == 'fedpft')
    assert plan(tmp_path, small, *flags) == 0, capsys.readouterr().err
    assert '\nstage ' in capsys.readouterr().out


def test_a_prompt_of_class_names_costs_the_text_tower(tmp_path, capsys):
  flags = ('--model.head=zero_shot', '--algorithm.name=promptfl')
  rows = {}
  for classes in (10, 20):
    plan(tmp_path, CLIP_L14, *flags, f'--classes={classes}')
    rows[classes] = table(capsys.readouterr().out, 'promptfl')[1]
  # 16 context vectors of 768 float32.
  assert rows[10][:3] == ['49.2 kB'] * 3
  few, many = (float(rows[n][5].split()[0]) for n in (10, 20))
  assert many == pytest.approx(2 * few, rel=0.01)


def test_a_step_on_ciphertexts(tmp_path, capsys):
  """A batch of 8 times 257 tokens of width 1024, in halves of the ring."""
  assert plan(tmp_path, CLIP_L14, '--encrypted=2', '--encrypted_weight=0') == 0
  text = capsys.readouterr().out.split('on ciphertexts of CKKS')[1]
  assert f'{8 * 257 * 1024:,} values of a device' in text
  rows = [re.split(r'  +', x.strip()) for x in text.splitlines()[2:-1]]
  assert [row[0] for row in rows] == ['8192*', '16384', '32768']
  assert rows[0][2:5] == ['25.0x', '514', '211 MB']
  assert (
    plan(tmp_path, CLIP_L14, '--encrypted=2', '--encrypted_weight=1e6') == 0
  )
  assert '32768*' in capsys.readouterr().out
  assert plan(tmp_path, CLIP_L14) == 0
  assert 'CKKS' not in capsys.readouterr().out


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('encrypted=20', '--encrypted=20 multiplications'),
    ('encrypted=-1', 'allowed: at least 0'),
    ('encrypted_weight=-1', 'allowed: 0 to'),
    ('radio_mhz=0', 'more than 0'),
    ('radio_watts=1e9', 'at most 1e6'),
  ],
)
def test_what_no_ring_bears_is_told(flag, message, tmp_path, capsys):
  assert plan(tmp_path, CLIP_L14, '--encrypted=2', f'--{flag}') == 2
  text = capsys.readouterr().err
  assert message in text and text.count('\n') == 1


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--classes=3'], '--classes=3 is for checkpoints'),
    (['--lora.rank=x'], 'not a whole number'),
  ],
)
def test_mistakes_end_with_one_line(flags, message, capsys):
  assert main.main(['fedms', 'plan', *flags]) == 2
  text = capsys.readouterr().err
  assert message in text and text.count('\n') == 1
