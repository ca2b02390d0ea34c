"""What the main programs of real models may take, and what that is a ratio of.

A program's temporaries are held to the bytes that its clients need at least:
what the blocks keep for the backward pass and one block to work in, what
trains with its gradient and optimizer, and the columns of a batch. A change
that makes a large array goes over a ratio here by far; one that makes programs
smaller is a reason to lower it.
"""

from __future__ import annotations

from fedms_jax.models.family import Options
from tests.memory.programs import Case

_LLAMA_1B = {
  'model_type': 'llama',
  'hidden_size': 2048,
  'intermediate_size': 8192,
  'num_attention_heads': 32,
  'num_key_value_heads': 8,
  'num_hidden_layers': 16,
  'vocab_size': 128256,
  'max_position_embeddings': 2048,
  'tie_word_embeddings': True,
}
_BERT_BASE = {
  'model_type': 'bert',
  'hidden_size': 768,
  'intermediate_size': 3072,
  'num_attention_heads': 12,
  'num_hidden_layers': 12,
  'vocab_size': 30522,
  'max_position_embeddings': 512,
}
_GPT2 = {
  'model_type': 'gpt2',
  'n_embd': 768,
  'n_head': 12,
  'n_layer': 12,
  'vocab_size': 50257,
  'n_positions': 1024,
}
_VIT_B16 = {
  'model_type': 'vit',
  'hidden_size': 768,
  'intermediate_size': 3072,
  'num_attention_heads': 12,
  'num_hidden_layers': 12,
  'image_size': 224,
  'patch_size': 16,
}
_LM = Options(head='causal_lm', tokens=128)
_MASKED = Options(head='masked_lm', tokens=128)
_IMAGES = Options(classes=100)
_SIZE = (8, 16, 128)  # clients, batch, tokens

# name: (the case, most that its temporaries may be of what is needed).
TRAINED = {
  'llama-1': (Case(_LLAMA_1B, _LM, _SIZE), 0.9),
  'llama-2-probabilities': (
    Case(_LLAMA_1B, _LM, _SIZE, stage=2, mix='probabilities'), 1.0
  ),
  'gpt2-1': (Case(_GPT2, _LM, _SIZE), 1.5),
  'gpt2-2': (Case(_GPT2, _LM, _SIZE, stage=2), 1.6),
  'gpt2-2-dense': (Case(_GPT2, _LM, _SIZE, stage=2, depth=12), 0.8),
  'bert-2': (Case(_BERT_BASE, _MASKED, _SIZE, stage=2), 1.5),
  'vit-1': (Case(_VIT_B16, _IMAGES, (8, 16, 0)), 0.95),
  'vit-2': (Case(_VIT_B16, _IMAGES, (8, 16, 0), stage=2), 0.95),
}  # fmt: skip
SCORED = {
  'llama-2': (Case(_LLAMA_1B, _LM, (8, 16, 128), stage=2), 0.3),
  'gpt2-2': (Case(_GPT2, _LM, (8, 64, 128), stage=2), 0.3),
}
# Each takes seconds to compile; these are in every run of the tests.
QUICK = ('llama-2-probabilities', 'gpt2-2')
