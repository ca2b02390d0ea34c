"""Everything a run can be told, as frozen dataclasses; flags are made of them.

A file holds sections of one subject, and beside each section what it checks of
itself. The options of single methods are declared in `shell/catalog`, and are
sections, too. Config objects stop at the shell: nothing below imports them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedms_jax.shell import catalog, fields, plugins
from fedms_jax.shell.config.attack import AttackConfig
from fedms_jax.shell.config.data import (
  CohortConfig,
  DataConfig,
  PartitionConfig,
)
from fedms_jax.shell.config.engine import (
  CheckpointConfig,
  ColumnsConfig,
  DistributedConfig,
  EngineConfig,
  EvalConfig,
  StopConfig,
)
from fedms_jax.shell.config.model import (
  LoraConfig,
  ModelConfig,
  PretrainConfig,
  PromptConfig,
)
from fedms_jax.shell.config.privacy import PrivacyConfig
from fedms_jax.shell.config.run import Config
from fedms_jax.shell.config.schedule import ScheduleConfig
from fedms_jax.shell.config.tasks import TasksConfig
from fedms_jax.shell.config.time import SelectConfig, TimeConfig
from fedms_jax.shell.config.training import (
  AlgorithmConfig,
  ClientConfig,
  GateConfig,
  ServerConfig,
)
from fedms_jax.shell.config.wire import CompressionConfig, SecaggConfig
from fedms_jax.shell.fields import flatten, opt, section, validate, values

__all__ = [
  'AlgorithmConfig',
  'AttackConfig',
  'CheckpointConfig',
  'ClientConfig',
  'CohortConfig',
  'ColumnsConfig',
  'CompressionConfig',
  'Config',
  'DataConfig',
  'DistributedConfig',
  'EngineConfig',
  'EvalConfig',
  'GateConfig',
  'LoraConfig',
  'ModelConfig',
  'PartitionConfig',
  'PretrainConfig',
  'PrivacyConfig',
  'PromptConfig',
  'ScheduleConfig',
  'SecaggConfig',
  'SelectConfig',
  'ServerConfig',
  'StopConfig',
  'TasksConfig',
  'TimeConfig',
  'flatten',
  'from_values',
  'opt',
  'section',
  'validate',
  'values',
]


def from_values(flat: Mapping[str, Any]) -> Config:
  """The config whose leaves are `flat`, by the names of the flags; see
  `fields.from_values`."""
  plugins.load(flat.get('plugin', ''))
  catalog.known(flat.get('algorithm.name', ''))
  made = fields.from_values(Config, flat)
  return _named(made)


def _named(made: Config) -> Config:
  """The config whose algorithm is the one that --stages ends with."""
  method = made.pipeline.method
  given = made.algorithm.name
  if not method or method == given:
    return made
  if given != AlgorithmConfig().name:
    raise ValueError(
      f'--algorithm.name={given} and the {method} of --stages={made.stages} '
      'are two algorithms. Leave one of them out.'
    )
  algorithm = dataclasses.replace(made.algorithm, name=method)
  return dataclasses.replace(made, algorithm=algorithm)
