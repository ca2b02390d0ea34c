"""Baselines of federated learning at large."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class FedProx:
  mu: float = opt(
    0.01,
    "pull of the local model to the server's",
    low=0.0,
    was='algorithm.prox_mu',
  )


@dataclasses.dataclass(frozen=True)
class FedFn:
  length: float = opt(
    1.0,
    'length of the features that the head sees',
    above=0.0,
  )
  head_rate: float = opt(
    10.0,
    'factor of the learning rate of the head, whose features are shorter than '
    'they were',
    above=0.0,
  )


METHODS = {
  'fedavg': Method(
    'FedAvg of all weights: full fine-tuning', 'arXiv 1602.05629',
  ),
  'linear_probe': Method(
    'FedAvg of a linear head on the frozen base', 'arXiv 1602.05629',
    ours='the head alone trains',
  ),
  'fedprox': Method(
    "LoRA, pulled to the server's", 'arXiv 1812.06127',
    FedProx,
    ours='LoRA and head in place of all weights',
  ),
  'scaffold': Method(
    'LoRA, with control variates against drift', 'arXiv 1910.06378',
    ours='the control variate of option II is the mean gradient of the '
    'steps, so that any local optimizer will do; changes are weighed '
    'as models are',
  ),
  'fedfn': Method(
    'LoRA, and a head on features of one length', 'arXiv 2311.13267', FedFn,
    ours='LoRA and head in place of all weights; lengths other than 1; a '
    'larger rate of the head',
  ),
}  # fmt: skip
