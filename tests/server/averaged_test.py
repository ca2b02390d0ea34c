"""The server that averages touches what somebody held, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedms_jax.core.contract import Context, Received
from fedms_jax.core.types import Roles
from fedms_jax.server import averaged


def test_of_a_block_that_was_held_in_part_the_rest_stays_but_its_state_moves():
  """Three blocks of two columns, the cover is of each column."""
  momentum = optax.sgd(1.0, momentum=0.5)
  server = averaged.averaged(averaged.mean(), momentum)
  roles = Roles({}, {'blocks': {'a': jnp.full((3, 2), 10.0)}}, {})
  memory = server.init(jax.random.key(0), roles)
  memory = jax.tree.map(jnp.ones_like, memory)
  held = jnp.array([[2.0, 0], [0, 0], [1, 4]])
  moved = jnp.array([[6.0, 0], [0, 0], [5, 4]])  # sums of weighted moves
  received = Received(
    {'blocks': {'a': moved}}, {}, {'blocks': {'a': held}}, 3.0, 0.0
  )
  after, memory, _ = server.step(
    roles, memory, received, Context(jax.random.key(0))
  )
  (trace,) = jax.tree.leaves(memory)
  # The gradient is minus the mean move; the state is of whole blocks.
  np.testing.assert_allclose(trace, [[-2.5, 0.5], [1, 1], [-4.5, -0.5]])
  np.testing.assert_allclose(
    after.shared['blocks']['a'], [[12.5, 10], [10, 10], [14.5, 10.5]]
  )
