"""Training by outputs alone, without a gradient, and prefixes with them."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import opt

_TRAINS = ('prompt', 'lora')
_WHAT = 'what is trained: a soft prompt, or LoRA and head'


@dataclasses.dataclass(frozen=True)
class Mezo:
  trains: str = opt('prompt', _WHAT, choices=_TRAINS)
  kind: str = opt(
    'gaussian',
    'random directions: normal, of signs, or those of SPSA',
    choices=('gaussian', 'rademacher', 'spsa'),
  )
  step: float = opt(0.01, 'how far apart the two losses are, halved', above=0.0)
  directions: int = opt(
    1, 'directions that a step looks into', low=1, high=1 << 16
  )


@dataclasses.dataclass(frozen=True)
class FedKSeed:
  trains: str = opt('prompt', _WHAT, choices=_TRAINS)
  seeds: int = opt(4096, 'candidate seeds', low=1, high=1 << 20)
  step: float = opt(5e-4, 'how far apart the two losses are, halved', above=0.0)
  rate: float = opt(1e-3, 'learning rate', above=0.0)


@dataclasses.dataclass(frozen=True)
class Bbt:
  trains: str = opt('prompt', _WHAT, choices=_TRAINS)
  dimension: int = opt(
    500, 'of the random subspace that is searched', low=2, high=1 << 16
  )
  population: int = opt(
    20, 'points of a generation; a local step is one', low=4, high=1 << 16
  )
  sigma: float = opt(1.0, 'step size at first', above=0.0)
  scale: float = opt(
    1.0,
    'standard deviation of what is added at first, over that of the word '
    'embeddings',
    above=0.0,
  )
  covariance: str = opt(
    'full',
    'what is learned of it: all, or its diagonal, which is cheap in many '
    'dimensions',
    choices=('full', 'diagonal'),
  )


@dataclasses.dataclass(frozen=True)
class FedBpt(Bbt):
  population: int = opt(
    5, 'points of a generation; a local step is one', low=4, high=1 << 16
  )
  server: str = opt(
    'average',
    "what the server makes of the clients' searches: their mean (ours), or a "
    'generation of its own that ranks their ends, as published',
    choices=('average', 'rank'),
  )


@dataclasses.dataclass(frozen=True)
class BlackVip:
  side: int = opt(
    16, 'pixels of the prompt on a side, stretched to the images', low=1,
    high=4096,
  )  # fmt: skip
  strength: float = opt(
    0.2, 'how much is added to a pixel at most, of its range', above=0.0,
    high=1.0,
  )  # fmt: skip
  directions: int = opt(
    5, 'directions that a step looks into', low=1, high=1 << 16
  )
  step: float = opt(
    0.01, 'c; how far apart the two losses are at first, halved', above=0.0
  )
  step_decay: float = opt(
    0.1, 'gamma; c is divided by step^gamma', low=0.0, high=10.0
  )
  rate: float = opt(0.01, 'a; learning rate at first', above=0.0)
  offset: float = opt(1.0, 'o; steps that the rate is behind', low=0.0)
  rate_decay: float = opt(
    0.4, 'alpha; the rate is divided by (step + o)^alpha', low=0.0, high=10.0
  )
  momentum: float = opt(0.9, 'b; of a look ahead', low=0.0, high=0.9999)


@dataclasses.dataclass(frozen=True)
class Prefix:
  length: int = opt(
    5, 'trained keys and values of a block', low=1, high=1 << 16
  )


METHODS = {
  'mezo': Method(
    'soft prompt or LoRA by differences of losses, averaged',
    'arXiv 2305.17333', Mezo, text=True,
  ),
  'fedkseed': Method(
    'the same along directions of seeds: a number for each seed passes',
    'arXiv 2312.06353', FedKSeed, text=True,
  ),
  'bbt': Method(
    'soft prompt by CMA-ES in a random subspace, each client alone',
    'arXiv 2201.03514', Bbt, text=True,
  ),
  'fedbpt': Method(
    'the same, whose searches the server averages or ranks',
    'arXiv 2310.01467', FedBpt, text=True,
  ),
  'blackvip': Method(
    'image that is added to all images, by SPSA; without the generator',
    'arXiv 2303.14773', BlackVip,
  ),
  'prefix': Method(
    'trained keys and values before those of each active block, averaged',
    'arXiv 2110.07602', Prefix,
  ),
}  # fmt: skip
