"""A function that gets the record of each round, and a table of all of them.

python -m examples.logging_hook
"""

import fedms_jax
from examples import common


def tell(record):
  print(f'round {record["round"]}: loss {record["train_loss"]:.3f}')


def main(rounds=10, **options):
  result = fedms_jax.simulate(
    common.network(), common.digits(), observers=tell, rounds=rounds, **options
  )
  print(result.frame()[['round', 'train_loss', 'bytes_up']])
  return result


if __name__ == '__main__':
  main()
