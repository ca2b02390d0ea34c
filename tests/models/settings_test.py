"""The words of a config.json: typed, honored, refused, or told."""

import pytest

from fedms_jax.models import pretrained, rotary, rotary_settings
from fedms_jax.models.family import Options
from fedms_jax.models.settings import Settings
from tests.persistence.model_files_test import CONFIGS

LINEAR = {'rope_type': 'linear', 'factor': 4.0}
YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 16,
}
LONG = {
  'rope_type': 'longrope',
  'short_factor': [1.0, 1.5],
  'long_factor': [2.0, 4.0],
  'original_max_position_embeddings': 16,
}


def model(kind, **change):
  config, options = CONFIGS[kind]
  return pretrained.model(config | change, options)


@pytest.mark.parametrize('kind', CONFIGS)
def test_every_word_of_a_family_is_known_and_others_are_told(kind):
  assert model(kind).unread == ()
  found = model(kind, use_parallel_blocks=True, return_dict=True)
  assert found.unread == ('use_parallel_blocks (config.json)',)


def test_words_of_a_part_are_told_too():
  parts = CONFIGS['clip'][0]['vision_config'] | {'registers': 4}
  assert model('clip', vision_config=parts).unread == (
    'registers (vision_config of config.json)',
  )


@pytest.mark.parametrize(
  ('kind', 'change'),
  [
    ('bert', {'hidden_size': '32'}),
    ('bert', {'hidden_size': 32.0}),
    ('bert', {'num_hidden_layers': True}),
    ('bert', {'num_hidden_layers': 10**9}),
    ('bert', {'layer_norm_eps': '1e-12'}),
    ('bert', {'layer_norm_eps': -1.0}),
    ('bert', {'tie_word_embeddings': 1}),
    ('bert', {'hidden_act': ['gelu']}),
    ('bert', {'hidden_act': ''}),
    ('bert', {'vocab_size': 0}),
    ('bert', {'is_decoder': True}),
    ('bert', {'is_encoder_decoder': True}),
    ('bert', {'add_cross_attention': True}),
    ('bert', {'pruned_heads': {'0': [1]}}),
    ('bert', {'quantization_config': {'load_in_4bit': True}}),
    ('bert', {'auto_map': {'AutoModel': 'modeling.Jina'}}),
    ('roberta', {'pad_token_id': -1}),
    ('roberta', {'position_embedding_type': 'rotary'}),
    ('distilbert', {'dim': '32'}),
    ('distilbert', {'n_heads': 4, 'num_attention_heads': 8}),
    ('distilbert', {'activation': 'tanh'}),
    ('gpt2', {'n_head': 4, 'num_attention_heads': 8}),
    ('gpt2', {'n_inner': [3]}),
    ('llama', {'partial_rotary_factor': 0.5}),
    ('llama', {'rope_parameters': []}),
    ('llama', {'attention_bias': 'no'}),
    ('mistral', {'sliding_window': 0}),
    ('mistral', {'partial_rotary_factor': 0.5}),
    ('qwen2', {'use_sliding_window': 'yes'}),
    ('qwen2', {'layer_types': ['full_attention']}),
    ('qwen2', {'layer_types': ['full_attention', 'chunked_attention']}),
    ('qwen2', {'use_mrope': True}),
    ('qwen3', {'head_dim': 7}),
    ('gemma2', {'use_bidirectional_attention': True}),
    ('gemma2', {'query_pre_attn_scalar': 0}),
    ('gemma2', {'final_logit_softcapping': 'x'}),
    ('gemma2', {'hidden_act': 'silu'}),
    ('gemma3', {'attn_logit_softcapping': 50.0}),
    ('gemma3', {'rope_parameters': {'rope_type': 'default'}}),
    ('gemma3', {'rope_scaling': YARN}),
    ('gemma3', {'sliding_window_pattern': 3, '_sliding_window_pattern': 2}),
    ('phi3', {'partial_rotary_factor': 1.5, 'rope_parameters': None}),
    ('phi3', {'rope_parameters': LONG}),
    ('phi3', {'full_attn_mod': 2}),
    ('phi3', {'auto_map': {'AutoConfig': 'configuration_mine.Phi3Config'}}),
    ('llama', {'rope_interleaved': True}),
    ('vit', {'image_size': [16, 24]}),
    ('vit', {'patch_size': [8]}),
    ('vit', {'qkv_bias': 'yes'}),
    ('deit', {'image_size': '16'}),
    ('dinov2', {'use_swiglu_ffn': True}),
    ('dinov2', {'image_size': 30}),
    ('dinov2', {'mlp_ratio': '4'}),
    ('dinov2_with_registers', {'num_register_tokens': -1}),
    ('siglip', {'text_config': {'projection_size': 24}}),
    ('siglip', {'vision_config': {'vision_use_head': False}}),
    ('siglip_vision_model', {'vision_use_head': False}),
    ('siglip_text_model', {'pad_token_id': 60}),
    ('clip_vision_model', {'image_size': 30}),
    ('clip_text_model', {'eos_token_id': [59]}),
    ('clip', {'vision_config': []}),
    ('clip', {'projection_dim': None, 'text_config': {'hidden_size': 'x'}}),
    ('clip', {'vision_config': {'image_size': 30, 'patch_size': 8}}),
    ('clip', {'vision_config': {'model_type': 'siglip_vision_model'}}),
  ],
)
def test_a_word_that_is_not_understood_is_refused_by_name(kind, change):
  with pytest.raises(ValueError, match='config.json'):
    model(kind, **change)


@pytest.mark.parametrize('kind', ['vit', 'deit'])
def test_a_square_may_be_a_list(kind):
  listed = model(kind, image_size=[16, 16], patch_size=[8, 8])
  assert listed.backbone.cost == model(kind).backbone.cost
  vision = CONFIGS['clip'][0]['vision_config'] | {'image_size': [16, 16]}
  assert pretrained.image_side(CONFIGS['clip'][0] | {'vision_config': vision})


def test_the_other_names_of_gpt2_are_its_own():
  config, options = CONFIGS['gpt2']
  theirs = {'n_head': 'num_attention_heads', 'n_layer': 'num_hidden_layers',
            'n_embd': 'hidden_size'}  # fmt: skip
  other = {theirs.get(key, key): value for key, value in config.items()}
  found = pretrained.model(other, options).backbone
  assert found.cost == model('gpt2').backbone.cost
  assert found.blocks == 2


def read(**config):
  return rotary_settings.read(Settings(config))


def test_rope_scaling_holds_where_both_are_given():
  default = {'rope_type': 'default', 'rope_theta': 10000.0}
  both = read(rope_parameters=default, rope_scaling=LINEAR)
  assert both == read(rope_scaling=LINEAR)
  assert (both.base, both.scaling) == (10000.0, rotary.Linear(4.0))
  assert read(rope_parameters=LINEAR | {'rope_theta': 5e5}).base == 5e5
  halved = read(rope_scaling={'type': 'linear', 'factor': 2})
  assert halved.scaling == rotary.Linear(2.0)


@pytest.mark.parametrize(
  'config',
  [
    {
      'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5},
      'rope_scaling': LINEAR,
    },
    {'rope_scaling': {'rope_type': 'linear'}},
    {'rope_scaling': LINEAR | {'factor': 0}},
    {'rope_scaling': LINEAR | {'attention_factor': 0.5}},
    {'rope_scaling': LINEAR | {'partial_rotary_factor': 0.5}},
    {'rope_scaling': {'type': 'dynamic', 'factor': 2.0, 'alpha': 1.0}},
    {'rope_scaling': {'type': 'proportional', 'factor': 2.0}},
    {'rope_scaling': {'type': 'yarn', 'factor': 2.0}},
    {'rope_scaling': YARN | {'beta': 1.0}},
    {'rope_scaling': YARN, 'original_max_position_embeddings': 8},
    {'rope_scaling': LONG | {'short_factor': [1.0, 'x']}},
    {'rope_scaling': LONG | {'long_factor': None}},
    {'rope_scaling': {'full_attention': LINEAR}},
  ],
)
def test_angles_that_are_not_built_are_refused(config):
  with pytest.raises(ValueError, match=r'rope_\w+'):
    read(**config)


@pytest.mark.parametrize(
  ('kind', 'own', 'other'),
  [('bert', 'pooler', 'cls'), ('vit', 'cls', 'mean'), ('deit', 'cls', 'mean')],
)
def test_a_head_that_is_kept_is_on_the_feature_it_was_trained_on(
  kind, own, other
):
  config, _ = CONFIGS[kind]
  usual = pretrained.model(config, Options(classes=3, keep_head=True))
  named = pretrained.model(config, Options(classes=3, pooling=own))
  assert usual.reference == named.reference != ''
  with pytest.raises(ValueError, match=f'keep_head.*{other}.*{own}'):
    pretrained.model(config, Options(classes=3, keep_head=True, pooling=other))
  assert not pretrained.model(
    config, Options(classes=3, pooling=other)
  ).reference
