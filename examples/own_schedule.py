"""A schedule of your own for FedMS: a block more after rounds 5, 10, 20, ...

python -m examples.own_schedule
"""

import fedms_jax


def doubling(begin):
  """The depth follows from the round alone, so it reads no score."""

  def depth(state, round):
    return min(begin.cap, begin.first + (round // 5).bit_length())

  return fedms_jax.Trigger(None, lambda s, score: s, depth, reads=False)


def main(rounds=25, **options):
  result = fedms_jax.run(schedule=doubling, rounds=rounds, **options)
  print(result)
  return result


if __name__ == '__main__':
  main()
