"""Small models of the reference implementation, with random weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from fedms_jax.core.types import Span
from fedms_jax.models import pretrained
from fedms_jax.models.family import Options
from fedms_jax.persistence import model_files

TOLERANCE = 1e-4
DECODERS = ('GPT2', 'Llama', 'Mistral', 'Qwen', 'Gemma', 'Phi')
SIZES = {
  'num_hidden_layers': 2,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_attention_heads': 4,
}
PATCHES = SIZES | {'image_size': 16, 'patch_size': 8}
CLIP_PARTS = {
  'vision_config': PATCHES | {'num_hidden_layers': 3},
  'text_config': SIZES
  | {
    'hidden_size': 24,
    'vocab_size': 60,
    'max_position_embeddings': 12,
    'eos_token_id': 59,
    'bos_token_id': 58,
    'pad_token_id': 1,
  },
  'projection_dim': 20,
}
WORDS = SIZES | {'vocab_size': 60, 'max_position_embeddings': 20}
SIGLIP_PARTS = {
  'vision_config': PATCHES | {'num_hidden_layers': 3},
  'text_config': CLIP_PARTS['text_config'] | {'projection_size': 32},
}
DISTIL = {
  'n_layers': 2,
  'dim': 32,
  'hidden_dim': 48,
  'n_heads': 4,
  'vocab_size': 60,
  'max_position_embeddings': 20,
}
GPT2 = {
  'n_layer': 2,
  'n_embd': 32,
  'n_head': 4,
  'vocab_size': 60,
  'n_positions': 20,
  'bos_token_id': 0,
  'eos_token_id': 0,
  'pad_token_id': 0,
}
DINO = {k: v for k, v in PATCHES.items() if k != 'intermediate_size'}
GROUPED = WORDS | {'num_key_value_heads': 2, 'pad_token_id': 0}
LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 500.0,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}
YARN = {
  'rope_type': 'yarn',
  'rope_theta': 500.0,
  'factor': 4.0,
  'original_max_position_embeddings': 6,
  'beta_fast': 4.0,
}
DEEPSEEK = YARN | {'mscale': 0.7, 'mscale_all_dim': 1.3, 'truncate': False}
LONGROPE = {
  'rope_type': 'longrope',
  'rope_theta': 500.0,
  'short_factor': [1.0, 1.1, 1.3, 1.5],
  'long_factor': [1.5, 2.0, 3.0, 4.5],
}
QWEN2 = GROUPED | {'use_sliding_window': False}
QWEN3 = GROUPED | {'head_dim': 12, 'use_sliding_window': False}
WINDOW = {
  'use_sliding_window': True,
  'sliding_window': 3,
  'max_window_layers': 1,
}
GEMMA2 = GROUPED | {
  'head_dim': 12,
  'query_pre_attn_scalar': 10,
  'sliding_window': 3,
  'attn_logit_softcapping': 2.0,
  'final_logit_softcapping': 3.0,
}
GEMMA3 = GROUPED | {
  'num_hidden_layers': 3,
  'head_dim': 12,
  'query_pre_attn_scalar': 10,
  'sliding_window': 3,
  'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
  'rope_parameters': {
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
    'full_attention': {
      'rope_type': 'linear',
      'factor': 2.0,
      'rope_theta': 700.0,
    },
  },
}
PHI3 = GROUPED | {
  'hidden_size': 64,
  'original_max_position_embeddings': 8,
  'sliding_window': 5,
  'rope_parameters': LONGROPE
  | {'partial_rotary_factor': 0.5, 'original_max_position_embeddings': 8},
}


class Case(NamedTuple):
  """A model of `transformers` and how it is loaded here.

  kind: the prefix of its config class. model: the class itself. inputs:
  images or tokens. keep_head: whether its own head is loaded.
  """

  kind: str
  model: str
  config: dict[str, Any]
  options: Options
  inputs: str = 'tokens'
  keep_head: bool = True


LABELS = Options(classes=3)
LM = Options(head='causal_lm')
MLM = Options(head='masked_lm')
POOLER = Options(classes=3, pooling='pooler')
LABELED = {'num_labels': 3}

CLIP = Case('CLIP', 'CLIPModel', CLIP_PARTS, LABELS, 'images', False)
CASES = {
  'vit': Case(
    'ViT', 'ViTForImageClassification', PATCHES | LABELED, LABELS, 'images'
  ),
  'deit': Case(
    'DeiT', 'DeiTForImageClassification', PATCHES | LABELED, LABELS, 'images'
  ),
  'siglip': Case(
    'Siglip',
    'SiglipForImageClassification',
    {'vision_config': PATCHES} | LABELED,
    Options(classes=3, pooling='mean'),
    'images',
  ),
  'dinov2': Case(
    'Dinov2',
    'Dinov2ForImageClassification',
    DINO | LABELED | {'qkv_bias': False, 'mlp_ratio': 2},
    LABELS,
    'images',
  ),
  'dinov2_resized': Case(
    'Dinov2',
    'Dinov2ForImageClassification',
    DINO | LABELED | {'image_size': 24, 'patch_size': 4},
    Options(classes=3, image_side=16),
    'images',
  ),
  'dinov2_with_registers': Case(
    'Dinov2WithRegisters',
    'Dinov2WithRegistersForImageClassification',
    DINO | LABELED | {'num_register_tokens': 3},
    LABELS,
    'images',
  ),
  'dinov2_with_registers_resized': Case(
    'Dinov2WithRegisters',
    'Dinov2WithRegistersForImageClassification',
    DINO | LABELED | {'image_size': 24, 'patch_size': 4},
    Options(classes=3, image_side=16),
    'images',
  ),
  'bert': Case(
    'Bert', 'BertForSequenceClassification', WORDS | LABELED, POOLER
  ),
  'bert_mlm': Case('Bert', 'BertForMaskedLM', WORDS, MLM),
  'bert_mlm_untied': Case(
    'Bert', 'BertForMaskedLM', WORDS | {'tie_word_embeddings': False}, MLM
  ),
  'roberta': Case(
    'Roberta', 'RobertaForSequenceClassification', WORDS | LABELED, POOLER
  ),
  'roberta_mlm': Case('Roberta', 'RobertaForMaskedLM', WORDS, MLM),
  'distilbert': Case(
    'DistilBert',
    'DistilBertForSequenceClassification',
    DISTIL | LABELED | {'activation': 'relu'},
    POOLER,
  ),
  'distilbert_mlm': Case('DistilBert', 'DistilBertForMaskedLM', DISTIL, MLM),
  'distilbert_mlm_untied': Case(
    'DistilBert',
    'DistilBertForMaskedLM',
    DISTIL | {'tie_word_embeddings': False},
    MLM,
  ),
  'gpt2': Case('GPT2', 'GPT2LMHeadModel', GPT2, LM),
  'gpt2_classes': Case(
    'GPT2', 'GPT2ForSequenceClassification', GPT2 | LABELED, LABELS
  ),
  'llama': Case('Llama', 'LlamaForCausalLM', GROUPED, LM),
  'llama_tied_llama3': Case(
    'Llama',
    'LlamaForCausalLM',
    GROUPED
    | {
      'tie_word_embeddings': True,
      'rope_parameters': LLAMA3,
      'head_dim': 16,
      'attention_bias': True,
      'mlp_bias': True,
    },
    LM,
  ),
  'llama_yarn': Case(
    'Llama', 'LlamaForCausalLM', GROUPED | {'rope_parameters': YARN}, LM
  ),
  'llama_yarn_of_deepseek': Case(
    'Llama', 'LlamaForCausalLM', GROUPED | {'rope_parameters': DEEPSEEK}, LM
  ),
  'llama_dynamic': Case(
    'Llama',
    'LlamaForCausalLM',
    GROUPED
    | {
      'max_position_embeddings': 5,
      'rope_parameters': {'rope_type': 'dynamic', 'factor': 4.0},
    },
    LM,
  ),
  'llama_longrope_short': Case(
    'Llama',
    'LlamaForCausalLM',
    GROUPED
    | {
      'rope_parameters': LONGROPE
      | {'original_max_position_embeddings': 9, 'factor': 2.0}
    },
    LM,
  ),
  'llama_longrope_long': Case(
    'Llama',
    'LlamaForCausalLM',
    GROUPED
    | {'rope_parameters': LONGROPE | {'original_max_position_embeddings': 8}},
    LM,
  ),
  'smollm': Case(
    'Llama', 'LlamaForCausalLM', GROUPED | {'tie_word_embeddings': True}, LM
  ),
  'mistral': Case(
    'Mistral', 'MistralForCausalLM', GROUPED | {'sliding_window': 3}, LM
  ),
  'mistral_whole': Case(
    'Mistral',
    'MistralForCausalLM',
    GROUPED | {'sliding_window': None, 'head_dim': 12},
    LM,
  ),
  'mistral_classes': Case(
    'Mistral',
    'MistralForSequenceClassification',
    GROUPED | LABELED | {'sliding_window': 3},
    LABELS,
  ),
  'qwen2': Case('Qwen2', 'Qwen2ForCausalLM', QWEN2, LM),
  'qwen2_windows': Case('Qwen2', 'Qwen2ForCausalLM', QWEN2 | WINDOW, LM),
  'qwen2_classes': Case(
    'Qwen2', 'Qwen2ForSequenceClassification', QWEN2 | LABELED, LABELS
  ),
  'qwen3': Case('Qwen3', 'Qwen3ForCausalLM', QWEN3, LM),
  'qwen3_windows': Case(
    'Qwen3',
    'Qwen3ForCausalLM',
    QWEN3 | WINDOW | {'attention_bias': True, 'tie_word_embeddings': True},
    LM,
  ),
  'qwen3_classes': Case(
    'Qwen3', 'Qwen3ForSequenceClassification', QWEN3 | LABELED, LABELS
  ),
  'gemma2': Case('Gemma2', 'Gemma2ForCausalLM', GEMMA2, LM),
  'gemma2_usual': Case(
    'Gemma2',
    'Gemma2ForCausalLM',
    GEMMA2 | {'attn_logit_softcapping': None, 'final_logit_softcapping': None},
    LM,
  ),
  'gemma2_classes': Case(
    'Gemma2', 'Gemma2ForSequenceClassification', GEMMA2 | LABELED, LABELS
  ),
  'gemma3': Case('Gemma3Text', 'Gemma3ForCausalLM', GEMMA3, LM),
  'gemma3_classes': Case(
    'Gemma3Text',
    'Gemma3TextForSequenceClassification',
    GEMMA3 | LABELED | {'sliding_window': 100},
    LABELS,
  ),
  'phi3': Case('Phi3', 'Phi3ForCausalLM', PHI3, LM),
  'phi3_whole': Case(
    'Phi3', 'Phi3ForCausalLM', WORDS | {'pad_token_id': 0}, LM
  ),
  'phi3_classes': Case(
    'Phi3', 'Phi3ForSequenceClassification', PHI3 | LABELED, LABELS
  ),
  'llama_classes': Case(
    'Llama', 'LlamaForSequenceClassification', GROUPED | LABELED, LABELS
  ),
}


def build(case: Case, *, spread: float = 0.2, seed: int = 0):
  """The torch model of a case, all of whose parameters are random.

  spread: of what is added to the usual start, where norms are 1 and biases 0,
  so that a mix-up of them would not show.
  """
  torch = pytest.importorskip('torch', reason='parity needs torch')
  transformers = pytest.importorskip(
    'transformers', reason='parity needs transformers'
  )
  torch.manual_seed(seed)
  config = getattr(transformers, f'{case.kind}Config')(**case.config)
  model = getattr(transformers, case.model)(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(spread * torch.randn_like(parameter))
  return model


def reopen(model, folder, **kwargs) -> model_files.Checkpoint:
  """The checkpoint of a torch model, as `transformers` itself saves it."""
  model.save_pretrained(folder, **kwargs)
  return model_files.find(str(folder))


def load(case: Case, checkpoint: model_files.Checkpoint):
  """(model, params, head) of a checkpoint."""
  model = pretrained.model(checkpoint.config, case.options)
  params, head = model_files.load(model, checkpoint, head=case.keep_head)
  return model, params, head


def weights(model, spread: float = 1.0, seed: int = 0):
  """(params, head) of a model with random values, without compiling."""

  def init(key):
    return model.backbone.init(key), model.backbone.init_head(key)

  shapes = jax.eval_shape(init, jax.random.key(0))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: (spread * rng.normal(size=s.shape)).astype(np.float32), shapes
  )


def tokens(rows: int = 3, length: int = 9, vocabulary: int = 58, seed: int = 0):
  """Sequences of different lengths, padded on the right with -1."""
  rng = np.random.default_rng(seed)
  out = rng.integers(3, vocabulary, (rows, length)).astype(np.int32)
  for row in range(rows):
    out[row, length - row :] = -1
  return out


def images(rows: int = 2, side: int = 16, seed: int = 0):
  """Random uint8 images."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (rows, side, side, 3)).astype(np.uint8)


def pixels(images, mean, std):
  """What the reference's image processor makes of images of the right size."""
  import torch

  x = (images / 255.0 - np.asarray(mean)) / np.asarray(std)
  return torch.from_numpy(x.astype(np.float32).transpose(0, 3, 1, 2))


def given(case: Case, inputs) -> dict[str, Any]:
  """Inputs as the model of a case takes them in the reference."""
  if case.inputs == 'images':
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    plain = ((0.5,) * 3, (0.5,) * 3)
    usual = plain if case.kind in ('ViT', 'Siglip') else imagenet
    return {'pixel_values': pixels(inputs, *usual)}
  return torch_tokens(inputs, 1 if case.kind == 'Roberta' else 0)


def torch_tokens(inputs, padding: int = 0) -> dict[str, Any]:
  """Tokens as the reference takes them."""
  import torch

  mask = inputs >= 0
  ids = np.where(mask, inputs, padding).astype(np.int64)
  return {
    'input_ids': torch.from_numpy(ids),
    'attention_mask': torch.from_numpy(mask.astype(np.int64)),
  }


def walk(backbone, params, head, inputs):
  """(what enters each block and leaves the last, features, logits)."""

  @jax.jit
  def walked(params, head, inputs):
    mask = backbone.mask(inputs)
    states = [backbone.embed(params, inputs)]
    for block in range(backbone.blocks):
      own = jax.tree.map(lambda x, b=block: x[b : b + 1], params['blocks'])
      span = Span(block, block + 1, (own, None))
      states.append(backbone.run([span], states[-1], mask))
    features = backbone.features(params, states[-1], mask)
    return states, features, backbone.logits(params, head, features)

  return walked(params, head, inputs)


def close(ours, theirs, mask=None):
  """Largest absolute difference is under the tolerance, where mask holds."""
  theirs = theirs.detach().numpy()
  assert ours.shape == theirs.shape
  difference = np.abs(np.asarray(ours, np.float32) - theirs)
  if mask is not None:
    difference = difference[np.asarray(mask)]
  assert difference.max() < TOLERANCE, difference.max()
