"""What an entropy coder makes of the numbers of a code.

Whole numbers are sent in two parts: how often each occurs, and which of the
lists with these counts it is (T. Cover, Enumerative source encoding, IEEE
Trans. IT 19, 1973, example 2). Of a list of d numbers this takes no more than d
times their entropy, and the counts; a bit says whether the numbers are sent so,
or as they are.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.scipy.special import gammaln

_LN2 = math.log(2.0)


def bits(symbols, levels: int):
  """Bits of lists of whole numbers [..., d] from 0 to `levels` - 1, [...]: at
  most those of digits of this base, and one. Float32 says it to about a part
  in a million."""
  d = symbols.shape[-1]
  flat = symbols.reshape(-1, d).astype(jnp.int32)
  rows = jnp.arange(len(flat))[:, None]
  count = jnp.zeros((len(flat), levels), jnp.float32).at[rows, flat].add(1.0)
  lists = (gammaln(d + 1.0) - jnp.sum(gammaln(count + 1.0), axis=1)) / _LN2
  # How many ways there are to share d among so many.
  counts = math.lgamma(d + levels) - math.lgamma(levels) - math.lgamma(d + 1)
  table = math.ceil(counts / _LN2 - 1e-9)
  two = table + jnp.ceil(lists - 1e-3)  # a whole number may be a little over
  plain = math.ceil(d * math.log2(levels) - 1e-9)
  return (1.0 + jnp.minimum(two, plain)).reshape(symbols.shape[:-1])
