"""Data of your own, whose clients are known: {id: (inputs, answers)}.

python -m examples.arrays
"""

import numpy as np

import fedms_jax
from examples import common


def hospitals():
  for i in range(8):
    rows = np.arange(i, len(common.DIGITS), 8)
    rows = rows[np.isin((common.DIGITS[rows] - i) % 10, [0, 1, 2])]
    yield f'hospital-{i}', (common.PIXELS[rows], common.DIGITS[rows])


def main(rounds=20, **options):
  given = {'rounds': rounds} | options
  data = fedms_jax.from_clients(dict(hospitals()))
  result = fedms_jax.simulate(common.network(), data, 'ditto', **given)
  for row in result.clients:
    print(row['client'], row['test_rows'], row['global'], row['local'])
  return result


if __name__ == '__main__':
  main()
