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
    'mixture',
    'what trains the local expert: the loss of the mixture, its own, or both',
    choices=('mixture', 'own', 'both'),
    was='algorithm.local_loss',
  )
  stage2_depth: str = opt(
    'inherit',
    'depth at the start of stage 2',
    choices=('inherit', 'restart', 'dense'),
    was='algorithm.stage2_depth',
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
  )
}  # fmt: skip
