"""Clients with devices of their own: waiting for all, or FedBuff.

python -m examples.asynchronous
"""

import fedms_jax

POLICIES = {
  'wait for all': {'policy': 'synchronous'},
  'half more, the fastest': {'policy': 'synchronous', 'over': 1.5},
  'FedBuff': {'policy': 'fedbuff', 'buffer': 5},
}


def main(rounds=20, **options):
  found = {}
  for name, time in POLICIES.items():
    given = {'algorithm': 'fedavg', 'rounds': rounds, 'time': time} | options
    found[name] = fedms_jax.run(**given)
    told = found[name].summary['time']
    print(
      f'{name}: {told["virtual_time"]:.0f} virtual seconds, '
      f'{100 * told["wasted_flops"]:.0f} % of the work wasted'
    )
  return found


if __name__ == '__main__':
  main()
