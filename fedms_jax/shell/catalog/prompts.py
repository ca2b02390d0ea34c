"""Prompts and adapters of a frozen model: CLIP's family, and soft prompts."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class PromptFolio:
  local: float = opt(
    0.4,
    'weight of the local prompt (0: promptfl, 1: nothing shared)',
    low=0.0,
    high=1.0,
    was='algorithm.promptfolio_local',
  )


@dataclasses.dataclass(frozen=True)
class FedPgp:
  rank: int = opt(
    4,
    'rank of what a client adds to the prompt',
    low=1,
    high=4096,
    was='algorithm.fedpgp_rank',
  )
  contrast: float = opt(
    1.0,
    'weight of the contrastive loss (mu)',
    low=0.0,
    was='algorithm.fedpgp_contrast',
  )
  temperature: float = opt(
    0.5,
    'temperature of the contrastive loss',
    above=0.0,
    was='algorithm.fedpgp_temperature',
  )


@dataclasses.dataclass(frozen=True)
class PFedMoap:
  experts: int = opt(
    10,
    'prompts that a client mixes, its own included',
    low=2,
    high=4096,
    was='algorithm.pfedmoap_experts',
  )
  pool: int = opt(
    256,
    'clients whose newest prompt the server keeps',
    low=1,
    high=1 << 20,
    was='algorithm.pfedmoap_pool',
  )
  width: int = opt(
    128,
    'width of the gate (at most that of the features)',
    low=1,
    high=1 << 16,
    was='algorithm.pfedmoap_width',
  )
  heads: int = opt(
    8,
    "heads of the gate's attention; a divisor of its width",
    low=1,
    high=1 << 16,
    was='algorithm.pfedmoap_heads',
  )
  scale: float = opt(
    10.0,
    "factor of the attention's products",
    above=0.0,
    was='algorithm.pfedmoap_scale',
  )
  local: float = opt(
    0.5,
    'weight of the logits of the own prompt alone',
    low=0.0,
    was='algorithm.pfedmoap_local',
  )


@dataclasses.dataclass(frozen=True)
class PFedPrompt:
  rows: int = opt(
    64, 'rows that a client keeps to look at', low=1, high=1 << 20
  )
  weight: float = opt(
    10.0, 'weight of what they say, in logits (0: promptfl)', low=0.0
  )
  sharpness: float = opt(30.0, 'how much nearer rows count for more', low=0.0)


@dataclasses.dataclass(frozen=True)
class FedOtp:
  mass: float = opt(
    0.8,
    'gamma; share of the patches of an image that prompts are matched with',
    above=0.0,
    high=1.0,
  )
  entropy: float = opt(0.1, 'lambda; how even a match is', low=1e-3)
  rounds: int = opt(100, 'of scaling, to find the match', low=1, high=100_000)


@dataclasses.dataclass(frozen=True)
class PFedMma:
  blocks: int = opt(
    0,
    'blocks of each tower, from the output, with an adapter (0: two thirds of '
    'those of the shorter one)',
    low=0,
    high=4096,
  )
  width: int = opt(32, 'width of the adapters', low=1, high=1 << 16)
  scale: float = opt(1.0, 'factor of what an adapter adds', above=0.0)


METHODS = {
  'fedclip': Method(
    "attention adapter on CLIP's image feature", 'arXiv 2302.13485',
    ours='the cross-entropy over all classes in place of a contrast within the '
    'batch',
  ),
  'promptfl': Method(
    'soft prompt, averaged', 'arXiv 2208.11625', text=True
  ),
  'promptfolio': Method(
    'shared and own soft prompt, mixed by a fixed weight', 'arXiv 2409.19610',
    PromptFolio, text=True,
  ),
  'fedpgp': Method(
    'shared soft prompt and an own low-rank addition, held apart by a contrast',
    'arXiv 2405.09771', FedPgp, text=True,
  ),
  'pfedmoap': Method(
    "other clients' soft prompts as experts of an own attention gate",
    'arXiv 2410.10114', PFedMoap, text=True,
  ),
  'pfedprompt': Method(
    'shared soft prompt, and attention to rows that a client keeps',
    'doi 10.1145/3543507.3583518', PFedPrompt, text=True,
    ours='the form of the attention, and that prompts are trained without it',
  ),
  'fedotp': Method(
    'shared and own soft prompt, matched with the patches of an image',
    'arXiv 2403.00041', FedOtp, text=True,
    ours='a fixed number of rounds of scaling in place of a threshold',
  ),
  'pfedmma': Method(
    'own adapters of both towers that meet in a shared layer',
    'arXiv 2507.05394', PFedMma, text=True,
    ours='the last layer of an adapter begins at zero; blocks are counted from '
    'the output',
  ),
}  # fmt: skip
