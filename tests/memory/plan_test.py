"""The memory that `fedms plan` shows is the memory that XLA reports.

In float32, for XLA on a CPU computes bfloat16 in float32.
"""

import pytest

from fedms_jax.models.family import Options
from tests.memory import programs
from tests.memory.budgets import TRAINED
from tests.memory.programs import Case


def sizes(blocks, width, heads, mlp, words=1000):
  return {
    'num_hidden_layers': blocks,
    'hidden_size': width,
    'intermediate_size': mlp,
    'num_attention_heads': heads,
    'vocab_size': words,
    'max_position_embeddings': 256,
  }


_IMAGES = sizes(6, 192, 3, 768) | {'image_size': 224, 'patch_size': 16}
_BOTH = ('image/attn/q', 'image/attn/v', 'text/attn/q', 'text/attn/v')
CASES = {
  'vit': Case(
    {'model_type': 'vit', **_IMAGES}, Options(classes=10), (4, 16, 0)
  ),
  'bert': Case(
    {'model_type': 'bert', **sizes(6, 256, 4, 1024)},
    Options(classes=4, tokens=128), (4, 16, 128),
  ),
  'bert-lm': Case(
    {'model_type': 'bert', **sizes(6, 256, 4, 1024, 30522)},
    Options(head='masked_lm', tokens=128), (4, 16, 128),
  ),
  'gpt2-lm': Case(
    {
      'model_type': 'gpt2', 'n_layer': 6, 'n_embd': 256, 'n_head': 4,
      'vocab_size': 50257, 'n_positions': 256,
    },
    Options(head='causal_lm', tokens=128), (4, 16, 128),
  ),
  'llama-lm': Case(
    {
      'model_type': 'llama', **sizes(6, 512, 8, 1536, 32000),
      'num_key_value_heads': 2,
    },
    Options(head='causal_lm', tokens=128), (4, 16, 128),
  ),
  'clip': Case(
    {
      'model_type': 'clip', 'projection_dim': 128, 'vision_config': _IMAGES,
      'text_config': sizes(6, 128, 2, 512) | {'eos_token_id': 999},
    },
    Options(head='contrast', tower='both', tokens=32), (4, 16, 32),
    targets=_BOTH,
  ),
}  # fmt: skip
REAL = {name: case for name, (case, _) in TRAINED.items()}
QUICK = (('vit', 1, 3), ('gpt2-lm', 2, 1), ('llama-lm', 2, 6))


def all_cases():
  for name, case in CASES.items():
    for stage in (1, 2):
      for depth in (1, 3, 6):
        quick = (name, stage, depth) in QUICK
        yield pytest.param(
          case._replace(stage=stage, depth=depth),
          id=f'{name}-{stage}-{depth}',
          marks=() if quick else pytest.mark.slow,
        )
  for name, case in REAL.items():
    yield pytest.param(case, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize('case', list(all_cases()))
def test_what_is_planned_is_what_xla_takes(case):
  found = programs.memory(case)
  assert found.planned == pytest.approx(found.resident + found.taken, rel=0.2)
