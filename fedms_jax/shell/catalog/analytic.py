"""Heads of a frozen base that are computed from sums."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class Ncm:
  temperature: float = opt(
    0.1, 'that divides cosines to class means', above=0.0
  )


@dataclasses.dataclass(frozen=True)
class Ridge:
  strength: float = opt(1.0, 'of the ridge penalty', above=0.0)
  width: int = opt(
    0,
    'of random ReLU features of the features (0: the features themselves)',
    low=0,
    high=100_000,
  )


METHODS = {
  'ncm': Method(
    'Nearest class mean on the frozen base, by sums of all clients, once',
    'arXiv 2303.07338', Ncm,
  ),
  'ridge': Method(
    'Ridge regression on the frozen base, by sums of all clients, once',
    'arXiv 2205.14922', Ridge,
  ),
}  # fmt: skip
