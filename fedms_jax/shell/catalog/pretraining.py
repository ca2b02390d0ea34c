"""Federated pre-training of all weights on texts of a domain."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class Ffdapt:
  share: float = opt(
    1 / 3,
    'gamma, the mean part of the blocks that a client freezes (0: none)',
    low=0.0,
    high=0.99,
  )
  most: int = opt(
    0, 'epsilon, most blocks that a client freezes (0: half of them)', low=0
  )


METHODS = {
  'fdapt': Method(
    'continued pre-training of all weights on a domain', 'arXiv 2307.06933',
  ),
  'ffdapt': Method(
    'the same, with windows of frozen blocks by share of the data',
    'arXiv 2307.06933',
    Ffdapt,
    ours='the widths of the windows, and where the next round goes on',
  ),
}  # fmt: skip
