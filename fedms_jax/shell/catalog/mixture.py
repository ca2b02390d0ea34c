"""FedMS and its options; those of its gate are a section of their own."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class FedMS:
  local_start: str = opt(
    'global',
    'local expert starts as a copy of the global one, or as zero LoRA',
    choices=('global', 'zero'),
    was='algorithm.local_start',
  )
  local_loss: str = opt(
    'auto',
    'what trains the local expert: its own loss, that of the mixture, or both; '
    'auto: that of the mixture, so that it adds what the global one lacks, '
    'where the gate learns from the same rows and mixes logits or features, '
    'and by Adam; else its own; ours',
    choices=('auto', 'mixture', 'own', 'both'),
    was='algorithm.local_loss',
  )
  stage2_depth: str = opt(
    'inherit',
    'depth at the start of stage 2: that of stage 1, the first one again, all '
    'blocks, or continue: its queue, or count of rounds, goes on',
    choices=('inherit', 'restart', 'continue', 'dense'),
    was='algorithm.stage2_depth',
  )
  handover: str = opt(
    'rounds',
    'stage 1 ends after its rounds, or when its queue has settled at the cap '
    '(queue), or when what the queue watches has not grown by '
    '--schedule.eps for --schedule.queue_length rounds (validation); stage 2 '
    'has the rounds that are left; ours',
    choices=('rounds', 'queue', 'validation'),
  )
  upload_blocks: float = opt(
    0.0,
    'share of the active blocks of the local expert that is averaged too',
    low=0.0,
    high=1.0,
    was='algorithm.upload_blocks',
  )


METHODS = {
  'fedms': Method(
    'global expert, then local experts and a gate, with SAL',
    'arXiv 2312.15926', FedMS,
    ours='all that its abstract leaves open: the form of the gate, what is '
    'mixed, when the queue fires, how a local expert starts and trains; '
    'each is an option',
  )
}  # fmt: skip
