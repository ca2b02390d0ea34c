"""Computed heads from flags."""

from __future__ import annotations

from fedms_jax.algorithms import analytic
from fedms_jax.shell import tasks
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage


def _computed(builder: Builder) -> list[Stage]:
  config = builder.config
  name, kind = config.algorithm.name, config.model.head
  if kind != 'classification':
    raise ValueError(
      f'--algorithm.name={name} computes the head of classes, and not that of '
      f'--model.head={kind}; allowed: classification. Change one of them.'
    )
  head = tasks.head(config)
  setting = builder.setting(merges=True, exact=True)
  made = analytic.analytic(setting, name, head, builder.classes)
  return [tasks.computed(builder.stage('global', made, 1, 'dense'), config)]


STAGES = {'ncm': _computed, 'ridge': _computed}
