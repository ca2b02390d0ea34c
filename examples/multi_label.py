"""Any number of tags for each row: is the digit even, small, round?

python -m examples.multi_label
"""

import numpy as np

import fedms_jax
from examples import common


def main(rounds=20, **options):
  digit = common.DIGITS
  said = [digit % 2 == 0, digit < 5, np.isin(digit, [0, 6, 8, 9])]
  data = fedms_jax.from_arrays(common.PIXELS, np.stack(said, 1))
  result = fedms_jax.simulate(
    common.network(outputs=3),
    data,
    rounds=rounds,
    metrics=['f1', 'exact_match'],
    **options,
  )
  print(result)
  return result


if __name__ == '__main__':
  main()
