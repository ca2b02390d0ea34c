"""Personalized methods: what stays with a client, or a second model."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class FedRep:
  head_share: float = opt(
    0.5,
    'share of the local steps, the first ones, that train the head',
    above=0.0,
    high=0.99,
    was='algorithm.fedrep_head_share',
  )


@dataclasses.dataclass(frozen=True)
class Ditto:
  pull: float = opt(
    0.1,
    'lambda; pull of the personal model to the shared one',
    low=0.0,
    was='algorithm.ditto_lambda',
  )


@dataclasses.dataclass(frozen=True)
class Apfl:
  alpha: float = opt(
    0.5,
    'first weight of the own model',
    low=0.0,
    high=1.0,
    was='algorithm.apfl_alpha',
  )
  alpha_learning_rate: float = opt(
    0.1,
    'learning rate of that weight (0: it stays)',
    low=0.0,
    was='algorithm.apfl_alpha_learning_rate',
  )


@dataclasses.dataclass(frozen=True)
class PFedMe:
  pull: float = opt(
    15.0,
    'lambda; pull of the personal model to the shared one',
    above=0.0,
    was='algorithm.pfedme_lambda',
  )
  steps: int = opt(
    5,
    'steps on each batch to the personal model',
    low=1,
    high=1_000_000,
    was='algorithm.pfedme_steps',
  )
  learning_rate: float = opt(
    0.005,
    'the shared model moves by this times pfedme.pull times its distance to '
    'the personal one (beta is server.learning_rate)',
    above=0.0,
    was='algorithm.pfedme_learning_rate',
  )


@dataclasses.dataclass(frozen=True)
class FedDpa:
  scale: float = opt(
    0.5,
    'weight of the local LoRA for an input just like those that its client '
    'trained on',
    low=0.0,
    high=1.0,
    was='algorithm.feddpa_scale',
  )


@dataclasses.dataclass(frozen=True)
class PFedLora:
  rank: int = opt(8, 'rank of the adapter that is shared', low=1, high=4096)
  weight: float = opt(
    0.5,
    "mu; weight of the adapter's loss while the own model trains",
    low=0.0,
    high=1.0,
  )
  model_share: float = opt(
    0.5,
    'share of the local steps, the first ones, that train the own model',
    above=0.0,
    high=0.99,
  )


METHODS = {
  'local': Method(
    'LoRA and head of each client alone: nothing is shared', '-',
  ),
  'fedper': Method(
    'LoRA shared, head personal', 'arXiv 1912.00818',
    ours='LoRA in place of all weights',
  ),
  'fedrep': Method(
    'head first, then LoRA; LoRA shared, head personal', 'arXiv 2102.07078',
    FedRep,
    ours="LoRA in place of all weights; parts of a round's steps in place of "
    'epochs',
  ),
  'ditto': Method(
    'own model, pulled to that of FedAvg', 'arXiv 2012.04221', Ditto,
    ours='LoRA and head; both models train on the same batches',
  ),
  'apfl': Method(
    'own and shared model, mixed by a weight that each client learns',
    'arXiv 2003.13461', Apfl,
    ours='what is mixed are LoRA and heads',
  ),
  'pfedme': Method(
    'own model by Moreau envelopes of the shared one', 'arXiv 2006.08848',
    PFedMe,
    ours='LoRA and head in place of all weights',
  ),
  'feddpa': Method(
    "local and global LoRA, weighed by an input's likeness to the client's",
    'arXiv 2403.19211', FedDpa,
    ours='the features of the frozen base, of all rows of a client, in '
    "place of a few rows' under the local adapter",
  ),
  'pfedlora': Method(
    'own LoRA and head that meet in a small adapter, which alone is shared',
    'arXiv 2310.13283', PFedLora,
    ours="own models are LoRA and a head on one base; parts of a round's steps "
    "in place of epochs; the adapter's own loss has weight 1",
  ),
}  # fmt: skip
