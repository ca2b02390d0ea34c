"""Split learning: a part of the model is computed by the server."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt


def _blocks(which: str):
  return opt(1, f'{which} blocks, which are at the client', low=0, high=4096)


def _rate():
  return opt(
    1.0,
    "the learning rate of the server's blocks is client.learning_rate times "
    'this',
    above=0.0,
  )


@dataclasses.dataclass(frozen=True)
class FedV:
  first: int = _blocks('first')
  last: int = _blocks('last')
  body_rate: float = _rate()


@dataclasses.dataclass(frozen=True)
class FedVZ:
  first: int = _blocks('first')
  last: int = _blocks('last')
  body_rate: float = _rate()
  directions: int = opt(
    1, 'in which the loss is tried, for each estimate', low=1, high=1 << 20
  )
  step: float = opt(1e-3, 'how far (mu)', above=0.0)


METHODS = {
  'fedv': Method(
    'split learning: first and last blocks at the client, the body at the '
    'server',
    'arXiv 2403.16050', FedV,
    ours='LoRA trains; the server trains a copy of the body with each client, '
    'and averages',
  ),
  'fedvz': Method(
    'split learning without gradients: they are estimated from losses',
    'arXiv 2403.16050', FedVZ,
    ours='the same, and the equations of the estimate',
  ),
}  # fmt: skip
