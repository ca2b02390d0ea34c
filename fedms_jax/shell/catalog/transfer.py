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


METHODS = {
  'feddat': Method(
    'shared and own bottleneck adapter that teach each other',
    'arXiv 2308.12305', FedDat,
  ),
}  # fmt: skip
