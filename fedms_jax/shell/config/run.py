"""A whole run: all sections, and what belongs to none of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from fedms_jax.shell import catalog
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
from fedms_jax.shell.config.schedule import ScheduleConfig
from fedms_jax.shell.config.training import (
  AlgorithmConfig,
  ClientConfig,
  GateConfig,
  ServerConfig,
)
from fedms_jax.shell.fields import opt, section


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  workdir: str = opt('', 'folder of the run (empty: nothing is written)')
  resume: bool = opt(False, "go on from the workdir's last checkpoint")
  break_lock: bool = opt(
    False, 'take the workdir over from a run that died on another host'
  )
  seed: int = opt(0, 'seed of everything random', low=0, high=2**63 - 1)
  on_nan: str = opt(
    'stop',
    'at a non-finite update: stop, or skip the client',
    choices=('stop', 'skip'),
  )
  progress: bool = opt(True, 'show progress bars')
  tensorboard: bool = opt(True, 'write TensorBoard events to the workdir')
  data: DataConfig = section(DataConfig)
  partition: PartitionConfig = section(PartitionConfig)
  cohort: CohortConfig = section(CohortConfig)
  model: ModelConfig = section(ModelConfig)
  pretrain: PretrainConfig = section(PretrainConfig)
  algorithm: AlgorithmConfig = section(AlgorithmConfig)
  methods: Any = section(catalog.Options, named=False)
  prompt: PromptConfig = section(PromptConfig)
  lora: LoraConfig = section(LoraConfig)
  schedule: ScheduleConfig = section(ScheduleConfig)
  client: ClientConfig = section(ClientConfig)
  server: ServerConfig = section(ServerConfig)
  gate: GateConfig = section(GateConfig)
  privacy: PrivacyConfig = section(PrivacyConfig)
  engine: EngineConfig = section(EngineConfig)
  columns: ColumnsConfig = section(ColumnsConfig)
  eval: EvalConfig = section(EvalConfig)
  stop: StopConfig = section(StopConfig)
  checkpoint: CheckpointConfig = section(CheckpointConfig)
  distributed: DistributedConfig = section(DistributedConfig)

  def check(self) -> None:
    """Raises `ValueError` for what sections say against each other."""
    if self.cohort.size > self.partition.num_clients:
      raise ValueError(
        f'cohort.size={self.cohort.size} is more than '
        f'partition.num_clients={self.partition.num_clients}; allowed: at most '
        'all clients. Lower --cohort.size or raise --partition.num_clients.'
      )
    from fedms_jax.data import sampling  # lazy: NumPy, which help needs not

    c = self.cohort
    sampling.sampling(
      c.sampling, self.partition.num_clients, c.size, c.cap, c.groups
    )
