"""LoRA on the dense layers of your own network, by the pattern of their paths.

python -m examples.lora
"""

import fedms_jax
from examples import common


def main(rounds=20, **options):
  whole, adapted = (
    fedms_jax.simulate(
      network, common.digits(), rounds=rounds, lora={'rank': 4}, **options
    )
    for network in (common.network(), common.network(lora='Dense_*'))
  )
  for name, result in (('all weights', whole), ('LoRA and head', adapted)):
    sent = result.summary['total']['bytes_up']
    print(f'{name}: {sent:,.0f} bytes, {result.scores["global"]["own_mean"]}')
  return adapted


if __name__ == '__main__':
  main()
