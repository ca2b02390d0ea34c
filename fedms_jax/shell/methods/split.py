"""Split learning: a part of the model is computed by the server."""

from __future__ import annotations

import numpy as np

from fedms_jax.algorithms import split
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage


def _fedv(builder: Builder) -> list[Stage]:
  cut = _cut(builder)

  def make(setting):
    return split.fedv(setting, cut, adapter=builder.adapter)

  return builder.alone('global', builder.setting(), make)


def _fedvz(builder: Builder) -> list[Stage]:
  cut, own = _cut(builder), builder.own
  zeroth = split.Zeroth(own.directions, own.step)

  def make(setting):
    return split.fedvz(setting, cut, zeroth, adapter=builder.adapter)

  return builder.alone('global', builder.setting(), make)


def _cut(builder: Builder) -> split.Cut:
  own, config = builder.own, builder.config
  name, blocks = config.algorithm.name, builder.backbone.blocks
  if own.first + own.last > blocks:
    raise ValueError(
      f'--{name}.first={own.first} and --{name}.last={own.last} are more than '
      f'the {blocks} blocks of the model; allowed: at most that together. '
      'Lower one of them.'
    )
  if config.model.head == 'contrast':
    raise ValueError(
      f'--algorithm.name={name} cuts one tower in three, and --model.head='
      'contrast has two; allowed: any other head. Change one of them.'
    )
  # bfloat16 is no type of NumPy's own.
  size = 2 if config.model.dtype == 'bfloat16' else np.dtype('float32').itemsize
  return split.Cut(own.first, own.last, own.body_rate, size)


STAGES = {'fedv': _fedv, 'fedvz': _fedvz}
