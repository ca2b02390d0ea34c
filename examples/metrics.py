"""F1 and a metric of your own, on test rows of clients and pooled.

python -m examples.metrics
"""

import jax

import fedms_jax
from examples import common


def sure(logits, batch):
  """How sure the model is: (values [B], weights [B]), of which the mean is."""
  return jax.nn.softmax(logits).max(-1), batch['mask']


def main(rounds=20, **options):
  own = fedms_jax.of_means(sure)._replace(name='sure')
  given = {'rounds': rounds, 'metrics': ['f1', own]} | options
  result = fedms_jax.simulate(common.network(), common.digits(), **given)
  print(result)
  return result


if __name__ == '__main__':
  main()
