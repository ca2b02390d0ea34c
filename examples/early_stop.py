"""A run that ends when validation rows bring nothing new, or at a target.

python -m examples.early_stop
"""

import fedms_jax
from examples import common


def main(rounds=100, **options):
  result = fedms_jax.simulate(
    common.network(),
    common.digits(),
    rounds=rounds,
    stop={'metric': 'score', 'patience': 3, 'target': '0.9'},
    eval_validate_every=1,
    **options,
  )
  print(result, f'\nended after {len(result.records)} of {rounds} rounds')
  return result


if __name__ == '__main__':
  main()
