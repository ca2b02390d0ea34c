"""A whole run: all sections, and what belongs to none of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from fedms_jax.shell import catalog
from fedms_jax.shell.config import beside
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
from fedms_jax.shell.config.schedule import ScheduleConfig
from fedms_jax.shell.config.stages import Pipeline, parse
from fedms_jax.shell.config.tasks import TasksConfig
from fedms_jax.shell.config.time import SelectConfig, TimeConfig
from fedms_jax.shell.config.training import (
  AlgorithmConfig,
  ClientConfig,
  GateConfig,
  ServerConfig,
)
from fedms_jax.shell.config.wire import CompressionConfig, SecaggConfig
from fedms_jax.shell.fields import opt, section

LOGGERS = ('tensorboard', 'csv', 'wandb', 'mlflow')


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
  stages: str = opt(
    '',
    'a pipeline: S200 (200 steps of the server on public rows), F20x50 (20 '
    'rounds of 50 local steps of all weights on private rows), W20x50 (the '
    'same with frozen windows), then an algorithm: S200,F20x50,S50,fedms '
    '(empty: --pretrain.epochs, then --algorithm.name)',
  )
  plugin: str = opt(
    '',
    'modules of packages of your own, comma-separated, that add methods, '
    'schedules, ... (`fedms new` writes one); installed packages with entry '
    'points need no flag',
  )
  observers: str = opt(
    '', 'observers of plugins, comma-separated, which are called each round'
  )
  progress: bool = opt(True, 'show progress bars, if there is a terminal')
  log_seconds: float = opt(
    30.0,
    'without bars, a line on the newest round every so many seconds (0: none)',
    low=0.0,
  )
  log_rounds: int = opt(0, 'and one every so many rounds (0: none)', low=0)
  loggers: str = opt(
    'tensorboard',
    'where values of rounds go beside metrics.jsonl, with --workdir: of '
    f'{", ".join(LOGGERS)}; comma-separated',
  )
  tensorboard: bool = opt(
    True, 'false: as if tensorboard were not among --loggers'
  )
  data: DataConfig = section(DataConfig)
  partition: PartitionConfig = section(PartitionConfig)
  cohort: CohortConfig = section(CohortConfig)
  model: ModelConfig = section(ModelConfig)
  pretrain: PretrainConfig = section(PretrainConfig)
  algorithm: AlgorithmConfig = section(AlgorithmConfig)
  methods: Any = section(catalog.Options, named=False)
  prompt: PromptConfig = section(PromptConfig)
  lora: LoraConfig = section(LoraConfig)
  tasks: TasksConfig = section(TasksConfig)
  schedule: ScheduleConfig = section(ScheduleConfig)
  client: ClientConfig = section(ClientConfig)
  server: ServerConfig = section(ServerConfig)
  gate: GateConfig = section(GateConfig)
  privacy: PrivacyConfig = section(PrivacyConfig)
  compression: CompressionConfig = section(CompressionConfig)
  secagg: SecaggConfig = section(SecaggConfig)
  time: TimeConfig = section(TimeConfig)
  select: SelectConfig = section(SelectConfig)
  attack: AttackConfig = section(AttackConfig)
  engine: EngineConfig = section(EngineConfig)
  columns: ColumnsConfig = section(ColumnsConfig)
  eval: EvalConfig = section(EvalConfig)
  stop: StopConfig = section(StopConfig)
  checkpoint: CheckpointConfig = section(CheckpointConfig)
  distributed: DistributedConfig = section(DistributedConfig)

  @property
  def pipeline(self) -> Pipeline:
    """What --stages says."""
    return parse(self.stages)

  @property
  def first_model(self) -> ModelConfig:
    """The model of the first stage, with what is learned there."""
    if not self.pipeline.phases or not self.pretrain.head:
      return self.model
    return dataclasses.replace(self.model, head=self.pretrain.head)

  @property
  def logger_names(self) -> tuple[str, ...]:
    """Those of --loggers."""
    names = dict.fromkeys(x.strip() for x in self.loggers.split(','))
    less = () if self.tensorboard else ('tensorboard',)
    return tuple(name for name in names if name and name not in less)

  def _check_loggers(self) -> None:
    """Raises `ValueError` for what is no logger."""
    for name in self.logger_names:
      if name not in LOGGERS:
        raise ValueError(
          f'--loggers={self.loggers} has {name!r}; allowed: '
          f'{", ".join(LOGGERS)}.'
        )

  def check(self) -> None:
    """Raises `ValueError` for what sections say against each other."""
    self._check_loggers()
    self._check_pipeline()
    heads = self.model.head, self.first_model.head
    if self.data.masks == 'fresh' and 'masked_lm' not in heads:
      raise ValueError(
        f'--data.masks=fresh is for masked_lm, not for --model.head='
        f'{self.model.head}. Leave it out.'
      )
    if self.client.schedule == 'cosine' and not self.client.steps:
      left = [p.steps for p in self.pipeline.phases if p.kind != 'S']
      if self.pipeline.method or not self.stages or not all(left):
        raise ValueError(
          '--client.schedule=cosine needs to know how many local steps there '
          'will be. Set --client.steps.'
        )
    if self.cohort.size > self.partition.num_clients:
      raise ValueError(
        f'cohort.size={self.cohort.size} is more than '
        f'partition.num_clients={self.partition.num_clients}; allowed: at most '
        'all clients. Lower --cohort.size or raise --partition.num_clients.'
      )
    from fedms_jax.data import sampling  # lazy: NumPy, which help needs not
    from fedms_jax.shell import plugged

    c = self.cohort
    sampling.sampling(
      plugged.sampler(c.sampling),
      self.partition.num_clients,
      c.size,
      c.cap,
      c.groups,
    )

  def _check_pipeline(self) -> None:
    """Raises `ValueError` for what does not go with --stages, or needs it."""
    phases, method = self.pipeline
    p, default = self.pretrain, PretrainConfig()
    if not phases:
      for name in ('head', 'client_rate'):
        if getattr(p, name) != getattr(default, name):
          raise ValueError(
            f'--pretrain.{name}={getattr(p, name)} is for the phases of '
            '--stages, and there are none. Leave it out, or add --stages.'
          )
      return
    wrong = {
      f'--pretrain.mode={p.mode}': (
        p.mode not in ('auto', 'none'), 'S phases train all weights'
      ),
      f'--pretrain.epochs={p.epochs}': (
        p.epochs != default.epochs, 'S phases count steps'
      ),
      f'--privacy.mode={self.privacy.mode}': (
        self.privacy.on, 'what its phases send is not accounted'
      ),
      f'--model.storage={self.model.storage}': (
        self.model.storage != 'float32', 'all weights are trained'
      ),
      '--model.keep_head': (
        self.model.keep_head, 'the head belongs to the weights as they were'
      ),
      f'--lora.init={self.lora.init}': (
        self.lora.init, 'an adapter belongs to the weights as they were'
      ),
      f'--pretrain.head={p.head}': (
        p.head and not method, 'nothing else follows: it is --model.head'
      ),
      f'--model.head={self.model.head}': (
        p.head and self.model.head == 'zero_shot',
        f'--pretrain.head={p.head} trains a model without class prompts',
      ),
    }  # fmt: skip
    beside.refuse(
      f'--stages={self.stages}',
      {flag: found and why for flag, (found, why) in wrong.items()},
    )
    self.model.check_head(self.first_model.head, 'pretrain.head')
    self._check_phases()

  def _check_phases(self) -> None:
    """Raises `ValueError` for what W or S in --stages cannot do."""
    phases, _ = self.pipeline
    if any(x.kind == 'W' for x in phases) and self.client.state != 'reset':
      raise ValueError(
        f'--client.state={self.client.state} does not go with W in --stages='
        f'{self.stages}: clients train other blocks in each round. Leave it '
        'out.'
      )
    if any(x.kind == 'S' for x in phases) and not (
      self.data.public_fraction or self.data.public_classes
      or self.partition.load
    ):  # fmt: skip
      raise ValueError(
        f'--stages={self.stages} trains on public rows, and --data.'
        'public_fraction=0 leaves none. Raise it.'
      )
