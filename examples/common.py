"""What the examples share: handwritten digits, and a small network."""

import flax.linen as nn
from sklearn.datasets import load_digits

import fedms_jax

PIXELS, DIGITS = load_digits(return_X_y=True)


class Mlp(nn.Module):
  """Two dense layers on 64 pixels."""

  outputs: int = 10

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(32)(x / 16))
    return nn.Dense(self.outputs, name='head')(x)


def network(outputs=10, **how):
  """The network; see `fedms_jax.of_flax`."""
  return fedms_jax.of_flax(Mlp(outputs), head='head', **how)


def digits():
  """The data: rows of 64 pixels, and which digit it is."""
  return fedms_jax.from_arrays(PIXELS, DIGITS)
