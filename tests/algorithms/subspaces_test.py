"""Learning beside the directions that earlier tasks use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.adapters import layer_inputs, lora
from fedms_jax.algorithms import continual, stacked_lora, subspaces
from fedms_jax.core import reduction, rounds
from fedms_jax.core.contract import (
  Context,
  Message,
  Moment,
  Received,
  Sender,
  Work,
)
from fedms_jax.core.types import Adapter
from tests import world
from tests.algorithms import continual_test as sequence
from tests.algorithms.stacked_lora_test import fedit

KEY = continual.KEY


def gram(seed, width=6, rank=6):
  x = np.random.default_rng(seed).normal(size=(width, rank))
  return jnp.asarray(x @ x.T, jnp.float32)


def test_what_is_kept_is_taken_out_by_hand():
  kept = jnp.diag(jnp.array([1.0, 0.0]))
  found = subspaces.outside(kept, jnp.array([[3.0], [4.0]]))
  assert found.ravel().tolist() == [0, 4]


@pytest.mark.parametrize(
  ('share', 'expected'),
  [(0.0, []), (0.6, [1]), (0.64, [1]), (0.65, [1, 0]), (0.93, [1, 0, 2]),
   (1.0, [1, 0, 2])],
)  # fmt: skip
def test_the_largest_directions_are_kept_until_there_is_enough(share, expected):
  """Squares 4, 9, 1 and 0 of 14: 9/14 is 0.643, 13/14 is 0.929."""
  squares = jnp.diag(jnp.array([4.0, 9.0, 1.0, 0.0]))
  found = subspaces.grown(jnp.zeros((4, 4)), squares, share)
  np.testing.assert_allclose(
    found, np.diag(np.isin(range(4), expected)), atol=1e-6
  )


def test_what_was_kept_counts_and_stays():
  before = subspaces.grown(jnp.zeros((6, 6)), gram(0, rank=2), 0.99)
  new = gram(1)
  after = subspaces.grown(before, new, 0.9)
  np.testing.assert_allclose(after @ after, after, atol=1e-5)
  np.testing.assert_allclose(after @ before, before, atol=1e-5)
  assert jnp.sum(after * new) >= 0.9 * jnp.trace(new)
  # One direction less is not enough, and nothing is kept twice.
  values, vectors = np.linalg.eigh(after - before)
  least = [v for x, v in zip(values, vectors.T, strict=True) if x > 0.5]
  less = [float(v @ new @ v) for v in least]
  assert jnp.sum(after * new) - min(less) < 0.9 * jnp.trace(new)
  again = subspaces.grown(after, new, 0.9)
  np.testing.assert_allclose(again, after, atol=1e-5)


def test_nothing_is_kept_of_rows_that_are_not_there():
  kept = subspaces.grown(jnp.zeros((3, 3)), jnp.zeros((3, 3)), 0.95)
  assert not np.asarray(kept).any()


def test_a_layer_tells_what_goes_into_it():
  """And gives what LoRA gives, with the derivatives of LoRA."""
  keys = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(keys[0], (2, 3, 5))
  params = {'a': jax.random.normal(keys[1], (5, 2)),
            'b': jax.random.normal(keys[2], (2, 4))}  # fmt: skip
  held = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
  y = jax.random.normal(keys[3], (2, 3, 4))
  adapter = layer_inputs.Measured(world.LORA)

  def out(params, x, one: Adapter = adapter):
    return jnp.sum(jnp.sin(one.apply(params, x, y)))

  more = params | {'gram': jnp.ones((5, 5)), 'held': held}
  slopes, by_x = jax.grad(out, (0, 1))(more, x)
  plain, by_plain = jax.grad(functools.partial(out, one=world.LORA), (0, 1))(
    params, x
  )
  world.close(by_x, by_plain)
  world.close({k: slopes[k] for k in plain}, plain)
  rows = np.asarray(x)[np.asarray(held) > 0]
  np.testing.assert_allclose(slopes['gram'], rows.T @ rows, rtol=1e-5)


@functools.cache
def begun():
  """(algorithm of a task, its roles, the algorithm that measures)."""
  inner, _ = sequence.begun(continual.How(fresh=False), method=fedit)
  algorithm = subspaces.shielded(stacked_lora.stacked(inner, world.LORA))
  arrays = map(sequence.by_task, (sequence.SEEN, sequence.SEEN, sequence.OLD))
  roles = world.start()
  roles = roles._replace(frozen=roles.frozen | continual.start(*arrays))
  roles = jax.jit(algorithm.begin)(jax.random.key(0), roles)
  return algorithm, roles, subspaces.measured(algorithm, world.LORA, 0.5)


def measured(rows):
  """What is kept after a round over clients with these rows [K, S, B]."""
  _, roles, algorithm = begun()
  roles = world.trained(roles)
  roles, memory, channel = reduction.begin(algorithm, roles, 0)
  totals = reduction.empty(algorithm, roles)
  weights = (rows >= 0).sum((1, 2)).astype(np.float32)
  chunk = world.clients(rows, {}, weights)
  work = Work(sequence.table(), jax.random.key(0), Moment())
  totals, *_ = rounds.train(algorithm, world.DENSE, roles, work, totals, chunk)
  after, *_ = reduction.close(
    algorithm, roles, memory, channel, totals, jax.random.key(0), 0
  )
  world.same(after.shared, roles.shared)
  return after.frozen[KEY][subspaces.KEPT]


def test_what_is_kept_is_the_same_for_any_partition():
  rows = np.arange(1, 13, dtype=np.int32)
  alone = measured(rows.reshape(1, 3, 4))
  uneven = np.full((3, 2, 4), -1, np.int32)
  uneven[0, 0], uneven[0, 1], uneven[1, 0, :3], uneven[2, 0, 0] = (
    rows[:4], rows[4:8], rows[8:11], rows[11],
  )  # fmt: skip
  world.close(measured(uneven), alone, atol=1e-4)
  ranks = [np.asarray(jnp.trace(x, axis1=1, axis2=2)) for x in alone.values()]
  assert all((0 < r).all() and (r < world.WIDTH).all() for r in ranks), ranks


def moved(algorithm, roles, by=0.3):
  """The roles after a server's step on random updates."""
  keys = iter(jax.random.split(jax.random.key(5), 99))
  update = jax.tree.map(
    lambda x: x + by * jax.random.normal(next(keys), x.shape), roles.shared
  )
  _, memory, _ = reduction.begin(algorithm, roles, 0)
  message = reduction.covered(Message(update))
  sent = algorithm.server.send(roles.shared, message, jnp.float32(1), Sender())
  received = Received(
    sent.update, sent.extras, sent.cover, jnp.float32(1), jnp.float32(0)
  )
  after, *_ = algorithm.server.step(
    roles, memory, received, Context(jax.random.key(0))
  )
  return after


def test_a_later_task_leaves_alone_what_earlier_ones_put_into_a_layer():
  algorithm, roles, _ = begun()
  kept = measured(np.arange(1, 13, dtype=np.int32).reshape(1, 3, 4))
  roles = world.trained(roles)
  mine = roles.frozen[KEY] | {subspaces.KEPT: kept}
  roles = roles._replace(frozen=roles.frozen | {KEY: mine})
  roles = algorithm.begin(jax.random.key(1), roles)
  world.same(roles.frozen['start']['blocks'], roles.shared['blocks'])
  after = moved(algorithm, roles)
  before = lora.pairs(roles.shared['blocks'])
  for target, (a, b) in lora.pairs(after.shared['blocks']).items():
    old, x = before[target][0], jnp.swapaxes(kept[target], 1, 2)
    np.testing.assert_allclose(x @ old, 0, atol=1e-5)
    np.testing.assert_allclose(x @ a @ b, 0, atol=1e-4)
    assert float(jnp.abs(a - old).max()) > 0.01
    assert float(jnp.abs(a @ b).max()) > 0.01


def test_while_nothing_is_kept_the_server_s_step_is_its_own():
  algorithm, roles, _ = begun()
  inner, _ = sequence.begun(continual.How(fresh=False), method=fedit)
  plain = stacked_lora.stacked(inner, world.LORA)
  world.same(moved(algorithm, roles).shared, moved(plain, roles).shared)
