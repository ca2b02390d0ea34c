"""Random keys as pure functions of (seed, stream, stage, round, client).

Nothing carries a key from one round to the next, so a resumed run draws what
the uninterrupted one would have drawn.
"""

from __future__ import annotations

import jax

from fedms_jax.core.streams import Stream

_LOW = 2**32 - 1


def stream(seed: int, use: Stream, *path: int) -> jax.Array:
  """The key of one use: `stream(seed, Stream.CLIENT, stage, round)`."""
  key = jax.random.key(seed & _LOW)
  if seed > _LOW:  # whose high word JAX would leave out; not a number of ours
    key = jax.random.fold_in(key, _LOW - (seed >> 32))
  for number in (use.number, *path):
    key = jax.random.fold_in(key, number)
  return key


def per_client(key: jax.Array, ids: jax.Array) -> jax.Array:
  """One key per client [K], which depends on its id, not on its place."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
