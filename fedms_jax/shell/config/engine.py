"""How a run is executed, evaluated and kept."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  clients: str = opt(
    'auto',
    'how a cohort is executed',
    choices=('auto', 'vmap', 'chunk', 'loop'),
  )
  chunk: int = opt(
    0, 'clients per chunk (0: as many as fit)', low=0, high=1 << 20
  )
  unroll: int = opt(
    1,
    'local steps that are compiled as one program where clients run one by '
    'one: faster for small models, but each costs as much to compile',
    low=1,
    high=1024,
  )
  memory_mb: float = opt(
    0.0,
    'plan chunks and columns as if the device had this memory, in MB (0: what '
    'it has)',
    low=0.0,
    high=1e12,
  )
  personal_mb: float = opt(
    0.0,
    'memory of the device for the personal states of clients, the latest ones '
    'of all, in MB (0: a tenth of what an accelerator has free, nothing on a '
    'CPU)',
    low=0.0,
    high=1e12,
  )
  devices: int = opt(
    0,
    'devices of each process that clients are spread over (0: all of an '
    'accelerator, one of a CPU)',
    low=0,
    high=1 << 16,
  )
  model_axis: int = opt(
    1,
    'split each frozen weight over so many of the devices',
    low=1,
    high=1 << 16,
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
    0.0,
    'memory of the device for columns, in MB (0: half of what is free; of a '
    'CPU, a quarter)',
    low=0.0,
    high=1e12,
  )
  host_budget_mb: float = opt(
    0.0,
    'host memory for derived columns, in MB (0: half of what is free)',
    low=0.0,
    high=1e12,
  )
  batch: int = opt(
    256, 'rows per pass when columns are computed', low=1, high=1 << 20
  )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  clients: int = opt(
    200, 'most clients in the final evaluation', low=1, high=1 << 30
  )
  pooled_rows: int = opt(
    1000, 'most rows of the pooled test set', low=1, high=1 << 31
  )
  adapt: int = opt(
    0,
    'also evaluate after every client, met or not, and every newcomer on a '
    'part of its rows, has adapted for so many epochs from what the server '
    'gives it, by the local update of the method (0: only as training left '
    'them)',
    low=0,
    high=1_000_000,
  )
  mixed: float = opt(
    0.0,
    "also score each client's models on a stream of its own test rows and, "
    'with this share, rows of the pooled test set, as a device may meet them '
    '(0: not)',
    low=0.0,
    high=1.0,
  )
  validation_rows: int = opt(
    64, 'most validation rows of a client per round', low=1, high=1 << 20
  )
  validate_every: int = opt(
    10,
    "rounds between validations of the cohort's models where the schedule does "
    'not wait for them (fixed, linear, geometric, dense, random, manual)',
    low=1,
  )
  metrics: str = opt(
    '',
    'comma-separated metrics beside the score, such as f1,auc or rmse: '
    '`fedms list` names them',
  )
  readers: int = opt(
    200,
    'most clients whose own models read the pooled test set',
    low=1,
    high=1 << 30,
  )
  every: int = opt(
    0,
    'rounds between evaluations on test rows during a run, and one after the '
    'last round of a stage (0: only at the end of the run)',
    low=0,
  )
  sample: int = opt(
    50,
    'clients of these evaluations, always the same (0: as many as '
    'eval.clients)',
    low=0,
    high=1 << 30,
  )
  table: str = opt(
    'auto',
    'format of the file of all evaluated clients (auto: csv, from 100,000 '
    'clients on parquet)',
    choices=('auto', 'csv', 'parquet'),
  )


@dataclasses.dataclass(frozen=True)
class StopConfig:
  metric: str = opt(
    'capability',
    'what ends a stage early, a key of metrics.jsonl: capability (what the '
    'schedule watches), train_loss, eval_own, eval_pooled_f1, ...',
  )
  target: str = opt(
    '', 'end a stage when the metric reaches this (empty: none)'
  )
  patience: int = opt(
    0,
    'end a stage after so many rounds without a better value (0: never)',
    low=0,
  )
  delta: float = opt(
    0.0, 'by how much a value must be better to count', low=0.0
  )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  seconds: float = opt(
    60.0,
    'seconds from one checkpoint to the next; a stage, a run and a signal to '
    'stop end with one (0: whatever it takes)',
    low=0.0,
  )
  every: int = opt(0, 'rounds between checkpoints (0: any number)', low=0)
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
