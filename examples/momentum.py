"""Momentum at clients and at the server, and clients that are lost.

python -m examples.momentum
"""

import fedms_jax
from examples import common


def main(rounds=20, **options):
  result = fedms_jax.simulate(
    common.network(),
    common.digits(),
    rounds=rounds,
    client={'optimizer': 'sgd', 'learning_rate': 0.05, 'momentum': 0.9},
    server={'optimizer': 'momentum', 'momentum': 0.5},
    cohort_dropout=0.3,
    **options,
  )
  print('lost in each round:', [r['lost'] for r in result.records])
  return result


if __name__ == '__main__':
  main()
