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


METHODS = {
  'fedclip': Method(
    "attention adapter on CLIP's image feature", 'arXiv 2302.13485',
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
}  # fmt: skip
