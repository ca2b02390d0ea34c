"""Numbers to predict, with a loss of your own: the sum of the pixels.

python -m examples.regression
"""

import jax.numpy as jnp

import fedms_jax
from examples import common


def absolute(logits, values):
  """The loss of each row; values are in units of their spread."""
  return jnp.abs(logits - values).mean(-1)


def main(rounds=20, **options):
  data = fedms_jax.from_arrays(common.PIXELS, common.PIXELS.sum(1) / 100)
  result = fedms_jax.simulate(
    common.network(1, loss=absolute), data, rounds=rounds, metrics='mae,r2',
    **options,
  )  # fmt: skip
  print(result)
  return result


if __name__ == '__main__':
  main()
