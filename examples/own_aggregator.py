"""An aggregator of your own: means of updates, clipped at the clients.

python -m examples.own_aggregator
"""

import jax

import fedms_jax
from examples import common


def clipped():
  mean = fedms_jax.mean()

  def send(before, message, weight, sender):
    clip = lambda a, b: a + (b - a).clip(-0.01, 0.01)  # noqa: E731
    update = jax.tree.map(clip, before, message.update)
    return mean.send(before, message._replace(update=update), weight, sender)

  return mean._replace(send=send)


def main(rounds=20, **options):
  given = {'aggregator': clipped, 'rounds': rounds} | options
  return fedms_jax.simulate(common.network(), common.digits(), **given)


if __name__ == '__main__':
  print(main())
