"""Everything a run can be told, as frozen dataclasses; flags are made of them.

Each field carries its help text, so that code, flags and `--help` cannot
drift apart. `validate` raises `ValueError` before anything is compiled.
Config objects stop at `build.py`: nothing below it imports this module.
"""

from __future__ import annotations

import dataclasses
from typing import Any


def opt(default, help_text, *, choices=(), low=None, high=None, above=None):
  """A dataclass field with its help text and the values that it allows.

  `low` and `high` are inclusive bounds, `above` an exclusive lower bound.
  """
  metadata = {
    'help': help_text,
    'choices': tuple(choices),
    'low': low,
    'high': high,
    'above': above,
  }
  return dataclasses.field(default=default, metadata=metadata)


def section(cls):
  """A nested dataclass; its fields become flags named `section.field`."""
  return dataclasses.field(default_factory=cls)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  source: str = opt(
    'digits',
    'digits (embedded), synthetic, a Hub data set id, or a local folder or '
    'file that `datasets` reads (Parquet, Arrow, CSV, JSON lines, ImageFolder)',
  )
  subset: str = opt('', 'configuration name of a Hub data set')
  revision: str = opt('', 'revision of a Hub data set')
  train_split: str = opt('train', 'split whose rows the clients and server get')
  test_split: str = opt(
    'test',
    "split used as the pooled test set; if absent, or the source's only "
    "split, clients' test rows",
  )
  input_column: str = opt('', 'column of images or texts (empty: found)')
  label_column: str = opt('', 'column of labels (empty: found)')
  target_column: str = opt(
    '',
    'column of texts that belong to the inputs: completions of prompts '
    '(causal_lm), captions of images (contrast)',
  )
  group_column: str = opt('', 'column of user or writer ids, for natural')
  image_size: int = opt(
    0,
    'resize images to this side (0: as they are, or as the checkpoint wants '
    'them)',
    low=0,
  )
  max_tokens: int = opt(
    128, 'T: cut texts to so many tokens, and to what the model takes', low=2
  )
  pack: bool = opt(
    False, 'put several whole texts into a row of max_tokens (causal_lm)'
  )
  mask_fraction: float = opt(
    0.15, 'part of the tokens to hide (masked_lm)', above=0.0, high=0.9
  )
  max_rows: int = opt(0, 'use at most this many rows a split (0: all)', low=0)
  public_fraction: float = opt(
    0.3,
    'part of the rows that the server pre-trains on (set it to 0 where it does '
    'not: --pretrain.mode)',
    low=0.0,
    high=0.95,
  )
  public_classes: str = opt(
    '', 'comma-separated labels: their rows are public, the others private'
  )
  novel_classes: str = opt(
    '',
    'comma-separated labels that nobody trains on: their rows are in the '
    'pooled test set alone (base-to-novel evaluation)',
  )
  novel_fraction: float = opt(
    0.0,
    'or instead: the last part of the classes (0.5: the second half)',
    low=0.0,
    high=0.95,
  )
  public_shift: str = opt(
    '',
    'domain shift of the public images (digits default: dim)',
    choices=('', 'none', 'rotate', 'transpose', 'flip', 'invert', 'dim'),
  )
  synthetic_rows: int = opt(4000, 'rows of the synthetic source', low=1)
  synthetic_classes: int = opt(10, 'classes of the synthetic source', low=2)


@dataclasses.dataclass(frozen=True)
class PartitionConfig:
  name: str = opt(
    'dirichlet',
    'how rows are dealt to clients',
    choices=('iid', 'dirichlet', 'classes', 'quantity', 'natural'),
  )
  num_clients: int = opt(30, 'clients that train', low=1)
  unseen_clients: int = opt(4, 'further clients that never train', low=0)
  alpha: float = opt(0.3, 'Dirichlet concentration of label skew', above=0.0)
  classes_per_client: int = opt(2, 'for partition.name=classes', low=1)
  sigma: float = opt(1.0, 'lognormal sigma, for quantity', low=0.0)
  min_rows: int = opt(10, 'fewest rows of a client (at least 3)', low=3)
  validation: float = opt(
    0.15, "share of a client's rows for validation", above=0.0, high=0.8
  )
  test: float = opt(
    0.25, "share of a client's rows for test", above=0.0, high=0.8
  )
  save: str = opt('', 'write the partition to this .npz file')
  load: str = opt('', 'read the partition from this .npz file')


@dataclasses.dataclass(frozen=True)
class CohortConfig:
  size: int = opt(10, 'clients sampled per round', low=1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  name: str = opt(
    'vit',
    'vit (the built-in small vision transformer), or a checkpoint of CLIP, '
    'ViT, BERT, GPT-2 or LLaMA: a Hub id, or a local folder with config.json '
    'and *.safetensors',
  )
  revision: str = opt('', 'revision of a Hub checkpoint')
  head: str = opt(
    'classification',
    'what a checkpoint is for: a new linear head on its feature, next or '
    "masked tokens, CLIP's class prompts, or image-text contrast",
    choices=(
      'classification',
      'causal_lm',
      'masked_lm',
      'zero_shot',
      'contrast',
    ),
  )
  keep_head: bool = opt(
    False, "keep the checkpoint's own classification head; else a new one"
  )
  tower: str = opt(
    'image',
    'tower of CLIP that adapts',
    choices=('image', 'text', 'both'),
  )
  templates: str = opt(
    'a photo of a {}.',
    'class prompts for zero_shot, divided by |; their features are averaged',
  )
  patch: int = opt(2, 'vit: side of a square patch, in pixels', low=1)
  width: int = opt(64, 'vit: D, width of the transformer', low=4)
  blocks: int = opt(6, 'vit: L, number of transformer blocks', low=1)
  heads: int = opt(4, 'vit: attention heads', low=1)
  mlp_ratio: float = opt(2.0, 'vit: width of the MLP over D', above=0.0)
  pooling: str = opt(
    '',
    'feature of an image or text (empty: the usual of the model)',
    choices=('', 'cls', 'mean', 'pooler', 'last'),
  )
  dtype: str = opt(
    'float32',
    'compute type of the transformer',
    choices=('float32', 'bfloat16'),
  )
  storage: str = opt(
    'float32',
    "type of a checkpoint's frozen parameters",
    choices=('float32', 'bfloat16', 'int8'),
  )
  remat: bool = opt(False, 'rematerialize blocks in the backward pass')
  unroll: int = opt(
    3,
    'blocks in a row that are compiled one by one; more are a loop. Without a '
    'loop a step of a large model takes 6 % less on a CPU, and its compilation '
    'four times as long',
    low=0,
  )


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  mode: str = opt(
    'auto',
    "what the server trains on the public rows: full (all weights; the vit's "
    'default), probe (a linear head on frozen features; the default of a '
    'checkpoint with a new head), none',
    choices=('auto', 'full', 'probe', 'none'),
  )
  epochs: int = opt(30, 'server epochs on the public rows', low=0)
  batch_size: int = opt(64, 'server batch size', low=1)
  learning_rate: float = opt(1e-3, 'server learning rate (AdamW)', above=0.0)
  weight_decay: float = opt(1e-2, 'server weight decay', low=0.0)


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
  name: str = opt('fedms', 'what is simulated')
  stage1_rounds: int = opt(30, 'rounds of the global expert', low=0)
  stage2_rounds: int = opt(20, 'rounds of local experts and gate', low=0)
  local_start: str = opt(
    'global',
    'local expert starts as a copy of the global one, or as zero LoRA',
    choices=('global', 'zero'),
  )
  local_loss: str = opt(
    'mixture',
    'what trains the local expert: the loss of the mixture, its own, or both',
    choices=('mixture', 'own', 'both'),
  )
  stage2_depth: str = opt(
    'inherit',
    'depth at the start of stage 2',
    choices=('inherit', 'restart', 'dense'),
  )
  upload_blocks: float = opt(
    0.0,
    'share of the active blocks of the local expert that is averaged too',
    low=0.0,
    high=1.0,
  )
  hetlora_prune: float = opt(
    0.99,
    'hetlora: gamma; a client whose columns from gamma times its rank on got '
    'smaller in a round gives them up (0 or 1: never)',
    low=0.0,
    high=1.0,
  )
  hetlora_lambda: float = opt(
    0.005, 'hetlora: pull of those columns to zero while it trains', low=0.0
  )
  prox_mu: float = opt(
    0.01, "fedprox: pull of the local model to the server's", low=0.0
  )
  fedrep_head_share: float = opt(
    0.5,
    'fedrep: share of the local steps, the first ones, that train the head',
    above=0.0,
    high=0.99,
  )
  ditto_lambda: float = opt(
    0.1, 'ditto: pull of the personal model to the shared one', low=0.0
  )
  apfl_alpha: float = opt(
    0.5, 'apfl: first weight of the own model', low=0.0, high=1.0
  )
  apfl_alpha_learning_rate: float = opt(
    0.1, 'apfl: learning rate of that weight (0: it stays)', low=0.0
  )
  pfedme_lambda: float = opt(
    15.0, 'pfedme: pull of the personal model to the shared one', above=0.0
  )
  pfedme_steps: int = opt(
    5, 'pfedme: steps on each batch to the personal model', low=1
  )
  pfedme_learning_rate: float = opt(
    0.005,
    'pfedme: the shared model moves by this times pfedme_lambda times its '
    'distance to the personal one (beta is server.learning_rate)',
    above=0.0,
  )
  feddpa_scale: float = opt(
    0.5,
    'feddpa: weight of the local LoRA for an input just like those that its '
    'client trained on',
    low=0.0,
    high=1.0,
  )
  promptfolio_local: float = opt(
    0.4,
    'promptfolio: weight of the local prompt (0: promptfl, 1: nothing shared)',
    low=0.0,
    high=1.0,
  )
  fedpgp_rank: int = opt(
    4, 'fedpgp: rank of what a client adds to the prompt', low=1
  )
  fedpgp_contrast: float = opt(
    1.0, 'fedpgp: weight of the contrastive loss (mu)', low=0.0
  )
  fedpgp_temperature: float = opt(
    0.5, 'fedpgp: temperature of the contrastive loss', above=0.0
  )
  pfedmoap_experts: int = opt(
    10, 'pfedmoap: prompts that a client mixes, its own included', low=2
  )
  pfedmoap_pool: int = opt(
    256, 'pfedmoap: clients whose newest prompt the server keeps', low=1
  )
  pfedmoap_width: int = opt(
    128, 'pfedmoap: width of the gate (at most that of the features)', low=1
  )
  pfedmoap_heads: int = opt(
    8, "pfedmoap: heads of the gate's attention; a divisor of its width", low=1
  )
  pfedmoap_scale: float = opt(
    10.0, "pfedmoap: factor of the attention's products", above=0.0
  )
  pfedmoap_local: float = opt(
    0.5, 'pfedmoap: weight of the logits of the own prompt alone', low=0.0
  )


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  length: int = opt(
    16, 'context vectors of a soft prompt (promptfl and its kin)', low=1
  )
  words: str = opt(
    '',
    "CLIP: start the prompt from these words, such as 'a photo of a', as long "
    'as they are (empty: prompt.length random vectors)',
  )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  rank: int = opt(4, 'R, rank of the LoRA matrices', low=1)
  alpha: float = opt(8.0, 'LoRA scale is alpha / R', above=0.0)
  ranks: str = opt(
    '',
    'ranks dealt to clients in equal parts: 2,4,8, at most lora.rank, whose R '
    'is in the scale of all (flora, flexlora, hetlora; empty: lora.rank)',
  )
  targets: str = opt('attn/q,attn/v', 'comma-separated kernels that carry LoRA')
  init: str = opt(
    '', 'start stage 1 from the PEFT adapter in this folder (empty: fresh)'
  )


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
  name: str = opt(
    'queue',
    'when SAL activates more blocks',
    choices=(
      'queue',
      'queue_std',
      'fixed',
      'linear',
      'geometric',
      'dense',
      'random',
      'manual',
    ),
  )
  order: str = opt(
    'top_down',
    'which blocks come first; or which ones are drawn for each client and '
    'round (allocation, dropout), dealt over the cohort by importance and '
    'even use (balanced), or left out by a sliding window (window)',
    choices=(
      'top_down',
      'bottom_up',
      'random',
      'importance',
      'allocation',
      'balanced',
      'dropout',
      'window',
    ),
  )
  shape: str = opt(
    'uniform',
    'how likely a block is, for allocation',
    choices=('uniform', 'rising', 'falling', 'bottleneck', 'importance'),
  )
  balance: float = opt(
    1.0,
    'weight of even use against importance, for balanced (0: importance alone)',
    low=0.0,
  )
  start: int = opt(1, 'active blocks at the start', low=1)
  step: int = opt(1, 'blocks activated at a time', low=1)
  cap: int = opt(0, 'most active blocks (0: all)', low=0)
  queue_length: int = opt(5, 'Q, scores in the capability queue', low=2)
  eps: float = opt(
    0.01,
    'range of the queue (queue_std: its standard deviation) under which '
    'training has settled',
    above=0.0,
  )
  resolution: float = opt(
    3.0,
    'scores that differ by fewer validation rows count as equal, for queue',
    low=0.0,
  )
  interval: int = opt(5, 'rounds between activations, for fixed', low=1)
  probability: float = opt(
    0.2, 'chance of an activation per round, for random', above=0.0, high=1.0
  )
  depths: str = opt('', 'depth of each round, for manual: 1,1,2,4')
  score: str = opt(
    'validation',
    'what the queue watches',
    choices=('validation', 'train_accuracy', 'train_loss'),
  )
  reports: int = opt(
    256,
    'average the newest score of this many clients (0: only the cohort)',
    low=0,
  )
  budgets: str = opt(
    '', 'depth budgets dealt to clients in equal parts: 1,2,6 (empty: none)'
  )


@dataclasses.dataclass(frozen=True)
class ClientConfig:
  optimizer: str = opt(
    'adam', 'local optimizer', choices=('sgd', 'adam', 'adamw')
  )
  learning_rate: float = opt(0.003, 'local learning rate', above=0.0)
  momentum: float = opt(0.9, 'for sgd', low=0.0, high=1.0)
  weight_decay: float = opt(0.0, 'decoupled, for adamw', low=0.0)
  max_norm: float = opt(1.0, 'clip the gradient norm (0: never)', low=0.0)
  epochs: int = opt(2, "local passes over the client's rows", low=1)
  steps: int = opt(0, 'local steps instead of epochs (0: epochs)', low=0)
  batch_size: int = opt(8, 'B, local batch size', low=1)
  personal_learning_rate: float = opt(
    1e-3, 'for the personal part (0: client.learning_rate)', low=0.0
  )


@dataclasses.dataclass(frozen=True)
class ServerConfig:
  optimizer: str = opt(
    'mean',
    'what the server does with the mean update',
    choices=('mean', 'momentum', 'adagrad', 'adam', 'yogi'),
  )
  learning_rate: float = opt(1.0, 'server learning rate', above=0.0)
  momentum: float = opt(0.9, 'for momentum', low=0.0, high=1.0)
  aggregator: str = opt(
    'mean',
    'how the updates of clients are merged: by their mean, or so that a few '
    'bad ones do little',
    choices=('mean', 'median', 'trimmed_mean', 'krum'),
  )
  trim: float = opt(
    0.2,
    'trimmed_mean: share of the clients to leave out at either end',
    above=0.0,
    high=0.49,
  )
  byzantine: int = opt(1, 'krum: clients of a cohort that may be bad', low=0)


@dataclasses.dataclass(frozen=True)
class GateConfig:
  kind: str = opt(
    'softmax',
    'how the experts are weighed (fixed: by gate.bias, without a gate)',
    choices=('softmax', 'sigmoid', 'per_class', 'fixed'),
  )
  scope: str = opt(
    'shared',
    'whose the gate is: averaged by the server, or of each client alone',
    choices=('shared', 'local'),
  )
  tower: str = opt(
    'frozen',
    'features of the gate: of the frozen base, or of a tower with '
    'LoRA of its own',
    choices=('frozen', 'lora'),
  )
  reduction: int = opt(4, 'D over the width of the gate adapter', low=1)
  level: str = opt(
    'token',
    'of language models: weigh the experts for each token, or for a sequence '
    '(of next tokens: for what has been read of it)',
    choices=('token', 'sequence'),
  )
  bias: float = opt(0.0, 'start of the gate: log-odds of the global expert')
  learning_rate: float = opt(
    1e-4, 'for the gate (0: client.learning_rate)', low=0.0
  )
  mix: str = opt(
    'logits',
    'what is mixed',
    choices=('logits', 'probabilities', 'features', 'top1'),
  )


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  clients: str = opt(
    'auto',
    'how a cohort is executed',
    choices=('auto', 'vmap', 'chunk', 'loop'),
  )
  chunk: int = opt(0, 'clients per chunk (0: as many as fit)', low=0)
  unroll: int = opt(
    1,
    'local steps that are compiled as one program where clients run one by '
    'one: faster for small models, but each costs as much to compile',
    low=1,
  )
  memory_mb: float = opt(
    0.0,
    'plan chunks as if the device had this memory, in MB (0: what it has)',
    low=0.0,
  )
  devices: int = opt(
    0,
    'devices of each process that clients are spread over (0: all of an '
    'accelerator, one of a CPU)',
    low=0,
  )
  model_axis: int = opt(
    1, 'split each frozen weight over so many of the devices', low=1
  )
  prefetch: bool = opt(True, 'prepare the next cohort while a round runs')


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
  scope: str = opt(
    'auto',
    'how long derived columns live',
    choices=('auto', 'run', 'round', 'step'),
  )
  place: str = opt(
    'auto',
    'where the columns of a whole run lie: on the device, or in host memory, '
    "from which each round's are sent; auto: where they fit",
    choices=('auto', 'device', 'host'),
  )
  budget_mb: float = opt(
    4096.0, 'memory of the device for columns, in MB', low=0.0
  )
  host_budget_mb: float = opt(
    0.0,
    'host memory for derived columns, in MB (0: half of what is free)',
    low=0.0,
  )
  batch: int = opt(256, 'rows per pass when columns are computed', low=1)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  clients: int = opt(200, 'most clients in the final evaluation', low=1)
  pooled_rows: int = opt(1000, 'most rows of the pooled test set', low=1)
  validation_rows: int = opt(
    64, 'most validation rows of a client per round', low=1
  )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  every: int = opt(1, 'rounds between checkpoints', low=1)
  keep: int = opt(2, 'checkpoints kept', low=1)


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
  coordinator: str = opt(
    '', 'host:port of process 0 (empty: from the environment)'
  )
  processes: int = opt(
    0, "processes of the run (0: from the scheduler's environment)", low=0
  )
  process_id: int = opt(
    -1, 'number of this process (-1: from the environment)', low=-1
  )
  timeout: int = opt(60, 'seconds after which a lost process is noticed', low=1)


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  workdir: str = opt('', 'folder of the run (empty: nothing is written)')
  resume: bool = opt(False, "go on from the workdir's last checkpoint")
  break_lock: bool = opt(
    False, 'take the workdir over from a run that died on another host'
  )
  seed: int = opt(0, 'seed of everything random', low=0)
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
  prompt: PromptConfig = section(PromptConfig)
  lora: LoraConfig = section(LoraConfig)
  schedule: ScheduleConfig = section(ScheduleConfig)
  client: ClientConfig = section(ClientConfig)
  server: ServerConfig = section(ServerConfig)
  gate: GateConfig = section(GateConfig)
  engine: EngineConfig = section(EngineConfig)
  columns: ColumnsConfig = section(ColumnsConfig)
  eval: EvalConfig = section(EvalConfig)
  checkpoint: CheckpointConfig = section(CheckpointConfig)
  distributed: DistributedConfig = section(DistributedConfig)


def flatten(config: Any, prefix: str = '') -> dict[str, dataclasses.Field]:
  """All leaf fields of a config (class or object) by flag name."""
  fields = {}
  for field in dataclasses.fields(config):
    name = f'{prefix}{field.name}'
    if field.default_factory is not dataclasses.MISSING:
      fields |= flatten(field.default_factory, f'{name}.')
    else:
      fields[name] = field
  return fields


def values(config: Any) -> dict[str, Any]:
  """The value of every leaf of a config object by flag name."""
  out = {}
  for name in flatten(config):
    value = config
    for part in name.split('.'):
      value = getattr(value, part)
    out[name] = value
  return out


def from_values(flat: dict[str, Any], cls=Config) -> Any:
  """The config whose leaves are `flat`; absent ones keep their default."""
  known = flatten(cls)
  for name in flat:
    if name not in known:
      raise ValueError(f'{name} is no option. Options: {", ".join(known)}.')
  kwargs = {}
  for field in dataclasses.fields(cls):
    if field.default_factory is not dataclasses.MISSING:
      prefix = f'{field.name}.'
      inner = {
        k[len(prefix) :]: v for k, v in flat.items() if k.startswith(prefix)
      }
      kwargs[field.name] = from_values(inner, field.default_factory)
    elif field.name in flat:
      kwargs[field.name] = flat[field.name]
  return cls(**kwargs)


def validate(config: Config) -> None:
  """Raises `ValueError` for the first value outside what its field allows.

  Only what needs neither data nor model is checked here; the rest is checked
  by `build.py` as soon as both are known, and before anything is compiled.
  """
  flat = values(config)
  for name, field in flatten(config).items():
    _check(name, flat[name], field.metadata)
  total = config.partition.validation + config.partition.test
  if total >= 1.0:
    raise ValueError(
      f'partition.validation + partition.test = {total:g} leaves no training '
      'rows; allowed: a sum under 1. Lower one of them.'
    )
  if config.cohort.size > config.partition.num_clients:
    raise ValueError(
      f'cohort.size={config.cohort.size} is more than '
      f'partition.num_clients={config.partition.num_clients}; allowed: at most '
      'all clients. Lower --cohort.size or raise --partition.num_clients.'
    )


def _check(name: str, value: Any, rule: dict[str, Any]) -> None:
  """Raises `ValueError` if `value` breaks the rule of its field."""
  allowed = None
  if rule['choices'] and value not in rule['choices']:
    allowed = ', '.join(repr(choice) for choice in rule['choices'])
  elif rule['low'] is not None and not value >= rule['low']:
    allowed = f'at least {rule["low"]}'
  elif rule['high'] is not None and not value <= rule['high']:
    allowed = f'at most {rule["high"]}'
  elif rule['above'] is not None and not value > rule['above']:
    allowed = f'more than {rule["above"]}'
  if allowed is not None:
    raise ValueError(f'--{name}={value!r} is not allowed; allowed: {allowed}.')
