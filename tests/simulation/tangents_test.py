"""Scores of blocks: eigenvalues of their tangent kernels, by client."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax import schedules
from fedms_jax.schedules import f3ocus, orders, triggers
from fedms_jax.simulation import tangents
from fedms_jax.simulation.state import Stage
from tests import world


def batch(rows):
  data = {k: v[np.maximum(rows, 0)] for k, v in world.table().items()}
  return data | {'mask': jnp.asarray(rows >= 0)}


ROWS = np.array([3, 8, 20, 41, -1, -1])


@functools.cache
def jacobian():
  """d logits / d LoRA of the real rows, by block: [L, outputs, parameters]."""
  algorithm, roles = world.first_stage()
  roles = world.trained(roles)
  rows = batch(ROWS[:4])
  rows |= algorithm.columns(roles, rows, world.DENSE)

  def logits(blocks):
    now = roles._replace(shared=roles.shared | {'blocks': blocks})
    found = algorithm.predict(now, rows, world.DENSE).logits['global']
    return found.ravel()

  slopes = jax.jit(jax.jacrev(logits))(roles.shared['blocks'])
  return np.stack([
    np.concatenate([
      np.asarray(x[:, b]).reshape(len(x), -1) for x in jax.tree.leaves(slopes)
    ], axis=1)
    for b in range(world.BLOCKS)
  ])  # fmt: skip


def test_scores_are_the_largest_eigenvalues_and_padding_is_not_looked_at():
  algorithm, roles = world.first_stage()
  roles = world.trained(roles)
  exact = [np.linalg.eigvalsh(j @ j.T)[-1] for j in jacobian()]
  key = jax.random.key(0)
  found = tangents.eigenvalues(algorithm, roles, batch(ROWS), key)
  np.testing.assert_allclose(found, exact, rtol=0.03)
  assert (np.asarray(found) <= np.array(exact) * (1 + 1e-4)).all()
  other = np.where(ROWS < 0, -7, ROWS)
  rows = batch(ROWS) | {'inputs': batch(other + 1)['inputs']}
  rows['inputs'] = jnp.where(
    batch(ROWS)['mask'][:, None, None, None], batch(ROWS)['inputs'],
    rows['inputs'],
  )  # fmt: skip
  again = tangents.eigenvalues(algorithm, roles, rows, key)
  np.testing.assert_array_equal(again, found)


def stages(rounds=3):
  """FedIT under scores of its clients, a block each."""
  algorithm, _ = world.first_stage()

  def schedule(handover):
    made = schedules.schedule(
      triggers.fixed(1, 2, interval=2, step=1),
      orders.order('top_down', world.BLOCKS, 0),
      by_scores=f3ocus.pick('exact', 0),
    )
    return schedules.delayed(made, 1)

  return [Stage('global', algorithm, rounds, schedule)]


def test_a_run_trains_what_its_clients_score(monkeypatch):
  seen, true = [], tangents.block_scores

  def noted(simulation, state, cohort, store):
    found = true(simulation, state, cohort, store)
    seen.append((state.round, found))
    return found

  monkeypatch.setattr(tangents, 'block_scores', noted)
  _, state, records = world.simulate(stages())
  assert [number for number, _ in seen] == [0, 1, 2]
  assert all(found.shape == (3, world.BLOCKS) for _, found in seen)
  assert all((found > 0).all() for _, found in seen)
  assert np.ptp(seen[0][1], axis=0).min() > 0  # each client has its own
  moved = jax.tree.map(
    lambda x, y: np.abs(np.asarray(x - y)).max(axis=(1, 2)),
    state.roles.shared['blocks'], state.roles.frozen['start']['blocks'],
  )  # fmt: skip
  trained = np.max(jax.tree.leaves(moved), axis=0) > 0
  assert [bool(b) for b in trained] == list(state.ever)
  assert len(records) == 3


def test_the_ledger_has_what_is_sent_and_what_scoring_costs():
  _, plain, _ = world.simulate(
    [s._replace(schedule=without(s.schedule)) for s in stages(2)]
  )
  _, scored, _ = world.simulate(stages(2))
  more = scored.ledger.bytes_up - plain.ledger.bytes_up
  assert more == 2 * 3 * 4 * world.BLOCKS  # rounds, clients, a float a block
  assert scored.ledger.client_flops > 10 * plain.ledger.client_flops


def without(schedule):
  """The same depths, picked without scores."""
  return lambda handover: schedule(handover)._replace(by_scores=None)
