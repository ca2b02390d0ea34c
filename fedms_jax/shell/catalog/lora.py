"""LoRA aggregation: methods that differ in how A and B are merged."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class HetLora:
  prune: float = opt(
    0.99,
    'gamma; a client whose columns from gamma times its rank on got smaller in '
    'a round gives them up (0 or 1: never)',
    low=0.0,
    high=1.0,
    was='algorithm.hetlora_prune',
  )
  pull: float = opt(
    0.005,
    'lambda; pull of those columns to zero while it trains',
    low=0.0,
    was='algorithm.hetlora_lambda',
  )


@dataclasses.dataclass(frozen=True)
class LoraFair:
  pull: float = opt(
    0.01,
    "lambda; pull of the server's correction of B to zero",
    above=0.0,
  )


METHODS = {
  'fedit': Method(
    'FedAvg of LoRA: A and B averaged apart', 'arXiv 2305.05644'
  ),
  'ffa_lora': Method(
    'A random and frozen, B averaged', 'arXiv 2403.12313'
  ),
  'rolora': Method(
    'B and A in turn, a round each', 'arXiv 2502.01755',
    ours='the head trains in every round',
  ),
  'fedsa_lora': Method(
    'A shared, B and head personal', 'arXiv 2410.01463'
  ),
  'flora': Method(
    'LoRA stacked into a dense residual and restarted', 'arXiv 2409.05976',
    ours='what is stacked becomes a dense residual at once; a server optimizer '
    'acts on the head alone',
  ),
  'fedex_lora': Method(
    'A and B averaged, what that misses added to the base',
    'arXiv 2410.09432',
  ),
  'flexlora': Method(
    'mean of the products, cut to the ranks of clients by an SVD',
    'arXiv 2402.11505',
  ),
  'hetlora': Method(
    'ranks of clients cut from one LoRA, pruned, weighted by the norm of A B',
    'arXiv 2401.06432', HetLora,
    ours='columns that nobody had in a round stay as they were',
  ),
  'lora_fair': Method(
    'A and B averaged, and B corrected toward the mean of the products',
    'arXiv 2411.14961', LoraFair,
    ours='a squared distance, whose minimum is known, in place of a cosine and '
    'gradient steps',
  ),
}  # fmt: skip
