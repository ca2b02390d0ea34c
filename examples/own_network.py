"""A network of your own, under FedAvg and under a personalized method.

python -m examples.own_network
"""

import fedms_jax
from examples import common


def main(rounds=20, **options):
  shared, own = (
    fedms_jax.simulate(
      common.network(), common.digits(), method, rounds=rounds, **options
    )
    for method in ('fedavg', 'fedper')
  )
  print(shared, own, sep='\n\n')
  print(own.predict(common.PIXELS[:5], client=3).argmax(-1))
  return own


if __name__ == '__main__':
  main()
