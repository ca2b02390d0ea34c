"""Flags of the data that do not go with the head of the model."""

from __future__ import annotations

from fedms_jax.shell.config.data import DataConfig
from fedms_jax.shell.config.model import ModelConfig


def check(m: ModelConfig, d: DataConfig, reads_images: bool) -> None:
  """Raises `ValueError` for flags that this model would not look at.

  reads_images: whether its inputs are images.
  """
  head = m.head
  problems = {
    f'--data.image_size={d.image_size}': (
      d.image_size and reads_images,
      'a checkpoint has its own image size. Leave it out',
    ),
    '--data.pack': (
      d.pack and head != 'causal_lm',
      'only --model.head=causal_lm packs texts. Leave it out',
    ),
    f'--data.target_column={d.target_column}': (
      d.target_column and head not in ('causal_lm', 'contrast'),
      'only --model.head=causal_lm and contrast have such texts. Leave it out',
    ),
    '--model.head=contrast': (
      head == 'contrast' and not d.target_column,
      'the captions are not named. Name them: --data.target_column',
    ),
  }
  for flag, (wrong, why) in problems.items():
    if wrong:
      raise ValueError(f'{flag}: {why}.')
