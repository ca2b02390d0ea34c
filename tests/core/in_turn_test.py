"""Decompositions of several matrices wait for each other."""

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import tree


def test_parts_are_what_they_are_apart_and_each_waits_for_the_one_before():
  parts = {
    'a': (jnp.arange(3.0), jnp.ones(2)),
    'b': (jnp.full(3, jnp.inf), jnp.zeros(2)),
    'c': (jnp.full(3, jnp.nan), -jnp.ones(2)),
    'd': (-jnp.arange(3.0), jnp.ones(2)),
  }

  def each(pair):
    return jnp.sin(pair[0]), pair[1] + 1

  found = tree.in_turn(each, parts)
  for name, part in parts.items():
    jax.tree.map(np.testing.assert_array_equal, found[name], each(part))
  last = jax.jit(lambda parts: tree.in_turn(each, parts)['d'])
  # All are computed for the last: none has become one that nothing waits for.
  assert last.lower(parts).compile().as_text().count(' sine(') >= 4
