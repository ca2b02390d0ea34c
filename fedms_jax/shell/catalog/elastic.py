"""Methods that make the model, or its adapter, smaller."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class LoNas:
  ranks: str = opt(
    '',
    'ranks that a part of the LoRA may have: 2,4,8 (empty: lora.rank, its half '
    'and its quarter)',
  )
  search_rounds: int = opt(
    3, 'rounds of the search, after those of training', low=1, high=1 << 30
  )
  candidates: int = opt(
    20, 'configurations that are tried', low=2, high=1 << 16
  )
  tolerance: float = opt(
    0.01,
    'how much worse than the best the smallest may be that is taken, as a '
    'share of the rows',
    low=0.0,
    high=1.0,
  )


@dataclasses.dataclass(frozen=True)
class FedOt:
  ends: int = opt(
    1, 'blocks at either end, which clients train', low=1, high=4096
  )
  kept: float = opt(
    0.5,
    'share of the blocks between that clients get, as an emulator of them',
    low=0.0,
    high=1.0,
  )


@dataclasses.dataclass(frozen=True)
class FedPft:
  share: float = opt(
    0.5, "share of an MLP's neurons that clients get", above=0.0, high=1.0
  )
  ends: int = opt(
    1, 'blocks at either end whose MLPs stay whole', low=0, high=4096
  )
  product: float = opt(
    1.0,
    'weight of the products of the weights of an MLP, beside the states '
    'behind it, in what the server trains on',
    low=0.0,
  )
  steps: int = opt(
    200,
    "steps of the server's training before the federated rounds",
    low=1,
    high=10_000_000,
  )
  interval: int = opt(
    5,
    "rounds between the server's later trainings; 0: none",
    low=0,
    high=1_000_000,
  )
  align_steps: int = opt(20, 'steps of a later training', low=1, high=1_000_000)
  batch_size: int = opt(32, 'public rows of a step', low=1, high=1 << 20)
  learning_rate: float = opt(
    0.001, "learning rate of the server's training", above=0.0
  )


@dataclasses.dataclass(frozen=True)
class RaFfm:
  mlp: str = opt(
    '1,0.625,0.417',
    "shares of an MLP's neurons, of which a client draws one in each round",
  )
  head: str = opt('1', "the same of the channels of a head's queries and keys")


METHODS = {
  'lonas': Method(
    'LoRA that holds smaller ones, and the search for one of them',
    'LREC-COLING 2024, arXiv 2501.16372', LoNas,
    ours='the federated form, the search at the clients, and the rule by which '
    'one is taken; widths of the base do not change',
  ),
  'fedot': Method(
    'LoRA at both ends, trained around a part of the blocks between',
    'arXiv 2302.04870, 2309.00363', FedOt,
    ours='LoRA in place of whole blocks; the emulator is not distilled',
  ),
  'fedpft': Method(
    'LoRA on a model of narrower MLPs, which the server keeps like the whole',
    'arXiv 2404.11536', FedPft,
  ),
  'raffm': Method(
    'FedAvg of all weights by clients that train salient parts of the width',
    'arXiv 2310.00247', RaFfm,
  ),
}  # fmt: skip
