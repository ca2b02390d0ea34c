"""FedMS under differential privacy of clients, its epsilon and its price.

python -m examples.private
"""

import fedms_jax

POISSON = {'cohort_sampling': 'poisson'}
PRIVATE = {
  'privacy_mode': 'central',
  'privacy_clip': 0.5,
  'privacy_noise': 0.74,
  'privacy_population': 100_000,
  'privacy_population_cohort': 1_000,
}


def main(rounds=(12, 8), **options):
  common = {'rounds': rounds, 'schedule': 'linear', **POISSON} | options
  plain, private = (fedms_jax.run(**common | x) for x in ({}, PRIVATE))
  told = private.summary['privacy']
  print(f'epsilon {told["epsilon"]:.2f} at delta {told["delta"]:.1e}')
  for name, found in (('plain', plain), ('private', private)):
    print(name, found.scores['mixture']['own_mean'])
  return private


if __name__ == '__main__':
  main()
