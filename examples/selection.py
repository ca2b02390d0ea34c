"""Which clients take part: half of the time those with even numbers.

python -m examples.selection
"""

import numpy as np

import fedms_jax
from examples import common


def even_first(seed, stage, round, clients, size):
  """A pure function of the round, so that a resumed run draws the same."""
  rng = np.random.default_rng([seed, stage, round])
  allowed = np.arange(0, clients, 2 if round % 2 else 1)
  return rng.choice(allowed, min(size, len(allowed)), replace=False)


def main(rounds=20, **options):
  given = {'sampler': even_first, 'rounds': rounds} | options
  return fedms_jax.simulate(common.network(), common.digits(), **given)


if __name__ == '__main__':
  print(main())
