"""FoolsGold: who pulls alike over the rounds counts little."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax.core import tree
from fedms_jax.core.contract import Context, Message, Received, Sender
from fedms_jax.core.types import Roles
from fedms_jax.server import averaged, foolsgold
from tests import world

N, L, D = 8, 2, 6
KEY = jax.random.key(1)
MADE = foolsgold.foolsgold(N)
SHARED = {'blocks': {'a': jnp.zeros((L, D))}, 'head': jnp.zeros(3)}
SERVER = averaged.averaged(MADE, optax.sgd(1.0))


@pytest.mark.parametrize(
  ('cosines', 'want'),
  [
    # Two sybils and one who has nothing to do with them.
    ({(0, 1): 1.0}, [0.0, 0.0, 1.0]),
    # One who is a little like sybils is pardoned: 0.5 becomes 0.25.
    ({(0, 1): 1.0, (0, 2): 0.5, (1, 2): 0.5}, [0.0, 0.0, 1.0]),
    # 0.2 becomes 0.08; log(0.5435 / 0.4565) + 0.5 of 0.5 / 0.92.
    ({(0, 1): 0.5, (0, 2): 0.2, (1, 2): 0.2}, [0.6744, 0.6744, 1.0]),
    # Who goes the other way is no sybil of anybody.
    ({(0, 1): -1.0, (0, 2): -1.0, (1, 2): -1.0}, [1.0, 1.0, 1.0]),
    # All the same: nobody counts.
    ({(0, 1): 1.0, (0, 2): 1.0, (1, 2): 1.0}, [0.0, 0.0, 0.0]),
  ],
)
def test_trust_by_hand(cosines, want):
  full = np.eye(3, dtype=np.float32)
  for (i, j), value in cosines.items():
    full[i, j] = full[j, i] = value
  found = foolsgold.trust(jnp.asarray(full), jnp.ones(3, bool))
  np.testing.assert_allclose(found, want, atol=1e-4)
  # A fourth one that is not there, like all of them, changes nothing.
  more = np.ones((4, 4), np.float32)
  more[:3, :3] = full
  there = jnp.arange(4) < 3
  found = foolsgold.trust(jnp.asarray(more), there)
  np.testing.assert_allclose(found, [*want, 0.0], atol=1e-4)


def received(x, ids, held=None):
  """Changes [K, L * D + 3] of clients as a tree."""
  k = len(x)
  blocks = np.ones((k, L), np.float32) if held is None else held
  update = {
    'blocks': {'a': jnp.asarray(x[:, : L * D].reshape(k, L, D))},
    'head': jnp.asarray(x[:, L * D :]),
  }
  there = blocks.max(1)
  cover = {'blocks': jnp.asarray(blocks), 'head': jnp.asarray(there)}
  extras = {'sender': {'id': jnp.asarray(ids, jnp.uint32)}}
  return Received(update, extras, cover, jnp.asarray(there), jnp.zeros(k))


def flat(shared):
  return np.concatenate([np.ravel(shared['blocks']['a']), shared['head']])


step = jax.jit(SERVER.step)


def test_the_rounds_of_a_server_are_those_of_the_paper():
  """Of cohorts that differ, by hand with what each client has sent so far."""
  rng = np.random.default_rng(0)
  roles = Roles({}, SHARED, {})
  memory = SERVER.init(KEY, roles)
  past = np.zeros((N, L * D + 3))
  for _ in range(3):
    ids = np.sort(rng.permutation(N)[:5])
    x = rng.normal(size=(5, past.shape[1])).astype(np.float32)
    x[ids < 3] = x[0] + 0.1 * x[ids < 3]  # 0, 1, 2 are sybils
    past[ids] += x
    mine = past[ids] / np.linalg.norm(past[ids], axis=1, keepdims=True)
    alike = mine @ mine.T - np.eye(5)
    most = alike.max(1)
    for i in range(5):
      for j in range(5):
        if most[j] > most[i]:
          alike[i, j] *= most[i] / most[j]
    w = np.clip(1 - alike.max(1), 0, 1)
    w = np.clip(w / w.max(), 1e-6, 0.99)
    w = np.clip(np.log(w / (1 - w)) + 0.5, 0, 1)
    start = flat(roles.shared)
    roles, memory, _ = step(roles, memory, received(x, ids), Context(KEY))
    np.testing.assert_allclose(
      flat(roles.shared) - start, w @ x / w.sum(), rtol=1e-3, atol=1e-4
    )
  kept = memory['past']
  np.testing.assert_allclose(kept['head'], past[:, L * D :], atol=1e-5)


def test_who_is_not_there_is_remembered_as_it_was():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(4, L * D + 3)).astype(np.float32)
  held = np.ones((4, L), np.float32)
  held[2] = 0  # not there
  held[3, 0] = 0  # without a block
  roles = Roles({}, SHARED, {})
  memory = SERVER.init(KEY, roles)
  # What is not there may have any number.
  got = received(x, [1, 3, 1, 6], held)
  _, memory, _ = step(roles, memory, got, Context(KEY))
  past = memory['past']
  np.testing.assert_allclose(past['head'][1], x[0, L * D :])
  assert not np.asarray(past['head'])[[0, 2, 4, 5, 7]].any()
  assert not np.asarray(past['blocks']['a'][6, 0]).any()
  np.testing.assert_allclose(past['blocks']['a'][6, 1], x[3, D : 2 * D])


def test_sybils_that_outnumber_honest_clients_do_little():
  """Seven send one thing; the one honest client decides."""
  rng = np.random.default_rng(2)
  x = np.tile(rng.normal(size=(1, L * D + 3)), (N, 1)).astype(np.float32)
  x += 0.01 * rng.normal(size=x.shape).astype(np.float32)
  x[4] = rng.normal(size=L * D + 3)
  merged = MADE.merge(SHARED, received(x, np.arange(N)))
  np.testing.assert_allclose(flat(merged), x[4], atol=0.05)
  assert np.linalg.norm(x.mean(0) - x[4]) > 1


def test_a_message_says_whose_it_is_and_is_not_weighed():
  cover = {'blocks': jnp.ones(L), 'head': jnp.float32(1)}
  after = tree.add(SHARED, SHARED)
  sender = Sender(id=jnp.uint32(5))
  message = Message(after, {}, cover)
  sent = MADE.send(SHARED, message, jnp.float32(40), sender)
  assert int(sent.extras['sender']['id']) == 5
  assert float(sent.cover['head']) == 40


def test_more_than_can_be_remembered_is_refused():
  big = foolsgold.foolsgold(100_000_000)
  with pytest.raises(ValueError, match=r'`num_clients`=1.*of at most 17895697'):
    averaged.averaged(big, optax.sgd(1.0)).init(KEY, Roles({}, SHARED, {}))


@pytest.mark.slow
def test_the_engine_says_whose_messages_are_whose():
  aggregator = foolsgold.foolsgold(6)
  stages = world.stages(2, aggregator=aggregator)[:1]
  _, state, records = world.simulate(stages)
  seen = np.abs(state.memory['past']['head']['bias']).max(1) > 0
  drawn = set()
  from fedms_jax.data import cohorts

  for t in range(2):
    drawn |= set(cohorts.sample_cohort(0, 0, t, 6, 3).tolist())
  np.testing.assert_array_equal(np.flatnonzero(seen), sorted(drawn))
  assert len(records) == 2
