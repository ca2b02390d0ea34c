"""Soft prompts and prefixes of `fedms export`, where PEFT has a format."""

from __future__ import annotations

from collections.abc import Sequence

from fedms_jax.core.types import Tree
from fedms_jax.models.family import Model
from fedms_jax.persistence import peft, peft_prompts
from fedms_jax.persistence.model_files import Checkpoint
from fedms_jax.shell.config import Config


def written(
  config: Config,
  model: Model,
  labels: Sequence[str],
  checkpoint: Checkpoint,
  parts: Tree,
  out: str,
  task: str | None,
) -> bool:
  """Writes parts to the folder `out` if they are a prefix, or a prompt before
  inputs that PEFT has, too; whether it did. task: PEFT's task_type."""
  prefix = 'prefix' in parts.get('blocks', {}).get('attn', {})
  prompt = parts.keys() <= {'prompt', 'head'} and 'prompt' in parts
  if not prefix and (not prompt or model.prompted):
    return False
  try:
    peft_prompts.check(checkpoint.config, task, prefix)
  except ValueError as error:
    if prefix:
      raise ValueError(
        f'--algorithm.name={config.algorithm.name} of --model.name='
        f'{config.model.name} cannot be exported: {error}'
      ) from None
    return False  # as plain arrays
  assert task is not None  # it is checked
  head = parts.get('head') or None
  if prefix:
    c = checkpoint.config
    peft_prompts.save_prefix(
      out, model, parts['blocks'],
      int(c.get('num_key_value_heads') or c['num_attention_heads']),
      base=config.model.name, task=task, head=head, labels=labels,
    )  # fmt: skip
  else:
    peft_prompts.save_prompt(
      out, model, parts['prompt'],
      base=config.model.name, task=task, head=head, labels=labels,
    )  # fmt: skip
  print(f'wrote {peft.CONFIG} and {peft.WEIGHTS} to {out}')
  if head and prompt:
    print(
      'behind a prompt, transformers reads a class from the last position: '
      'pad texts on the left'
    )
  return True
