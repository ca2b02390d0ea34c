"""Knowledge that passes otherwise than by averages alone: by distillation, by
pools of what others learned, by sums of models."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class FedDat:
  reduction: int = opt(
    16,
    'width of the layers over that of a bottleneck',
    low=1,
    high=1 << 16,
  )
  targets: str = opt(
    'mlp/down',
    'layers that have a bottleneck behind them, comma-separated',
  )
  distill: float = opt(
    0.5,
    "weight of the other model's predictions in a loss, beside that of labels",
    low=0.0,
    high=1.0,
  )


@dataclasses.dataclass(frozen=True)
class FedCaf:
  pool: int = opt(
    16,
    'newest adapters of clients that the server keeps, and a client mixes',
    low=1,
    high=1 << 16,
  )
  share: float = opt(
    0.25,
    'share of the local steps, the first ones, that learn how much each counts',
    above=0.0,
    high=0.99,
  )
  learning_rate: float = opt(
    0.1, 'learning rate of how much each counts', above=0.0
  )


@dataclasses.dataclass(frozen=True)
class FedKei(FedCaf):
  clusters: int = opt(
    4,
    'clusters of the adapters (at most fedkei.pool)',
    low=1,
    high=1 << 16,
  )


@dataclasses.dataclass(frozen=True)
class FedWeit:
  pool: int = opt(
    16,
    'newest parts of tasks of clients that the server keeps, and a client '
    'mixes',
    low=1,
    high=1 << 16,
  )
  sparsity: float = opt(
    1e-3, "weight of the absolute sum of a task's own part", low=0.0
  )
  pull: float = opt(
    100.0, 'pull of the parameters of earlier tasks to what they were', low=0.0
  )
  withheld: float = opt(
    0.3,
    'share of the outputs of a layer, those that its mask looks at least, that '
    'a client does not send',
    low=0.0,
    high=0.99,
  )
  least: float = opt(
    1e-3, "entries of a task's own part that are smaller are not sent", low=0.0
  )


@dataclasses.dataclass(frozen=True)
class Fgl:
  per_class: int = opt(
    400,
    'features of each class that the server draws in an epoch',
    low=1,
    high=1_000_000,
  )
  epochs: int = opt(
    30,
    "epochs of the server's training on them",
    low=1,
    high=100_000,
  )
  learning_rate: float = opt(
    0.01, "learning rate of the server's training", above=0.0
  )


@dataclasses.dataclass(frozen=True)
class Koala:
  depths: str = opt(
    '2',
    "blocks of the clients' small models, the first ones of the model; 1,2: an "
    'even draw for each client',
  )
  steps: int = opt(
    8,
    'batches of public rows that the server distills on in a round, each way',
    low=1,
    high=1_000_000,
  )
  batch_size: int = opt(32, 'public rows of such a batch', low=1, high=1 << 20)
  learning_rate: float = opt(
    0.001, "learning rate of the server's distillation", above=0.0
  )
  temperature: float = opt(3.0, 'temperature of the distillation', above=0.0)


@dataclasses.dataclass(frozen=True)
class FeMam:
  levels: int = opt(
    3,
    'levels of models: one of all clients, of clusters, one of each client',
    low=2,
    high=64,
  )
  clusters: int = opt(
    4,
    'clusters of clients in each level between the first and the last',
    low=1,
    high=4096,
  )
  pool: int = opt(
    64,
    'newest updates of clients by which the server makes clusters',
    low=1,
    high=1 << 16,
  )
  queue: int = opt(
    5,
    'rounds whose losses must be alike before a level begins',
    low=2,
    high=1_000_000,
  )
  eps: float = opt(
    0.05,
    'how alike: their range is below this share of their mean',
    low=0.0,
  )
  pull: float = opt(
    0.01, 'pull of the newest level to what the server sent', low=0.0
  )


METHODS = {
  'feddat': Method(
    'shared and own bottleneck adapter that teach each other',
    'arXiv 2308.12305', FedDat,
    ours='the head moves in the second step alone; where the adapters are',
  ),
  'fedcaf': Method(
    'LoRA from an attentive mixture of those that clients made before',
    'IEEE CAI 2024', FedCaf,
  ),
  'fedkei': Method(
    'the same by clusters, with weights within them that are shared',
    'arXiv 2508.10299', FedKei,
  ),
  'fedweit': Method(
    'for each task what all share, masked, and a sparse part of its own with a '
    "mixture of others'",
    'arXiv 2003.03196', FedWeit,
    ours='all parts are LoRA, the head is shared; how masks begin; which parts '
    'of others a client mixes',
  ),
  'femam': Method(
    'a sum of models by levels: of all, of clusters, of the client',
    'arXiv 2405.16472', FeMam,
  ),
  'koala': Method(
    'small models at clients, distilled into a large one and back on public '
    'rows',
    'arXiv 2407.05268', Koala,
    ours='small models are the first blocks of the large one; Adam at the '
    'server; the mean is of logits',
  ),
  'fgl': Method(
    'a head made of features that the server draws from class statistics, then '
    'FedAvg of it',
    'arXiv 2306.16064', Fgl,
  ),
}  # fmt: skip
