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
  """d loss / d LoRA of the real rows, by block: [L, rows, parameters]."""
  algorithm, roles = world.first_stage()
  roles = world.trained(roles)
  rows = batch(ROWS[:4])
  rows |= algorithm.columns(roles, rows, world.DENSE)

  def losses(blocks):
    now = roles._replace(shared=roles.shared | {'blocks': blocks})
    found = algorithm.predict(now, rows, world.DENSE).logits['global']
    return world.TASK.loss(found, rows)[0]

  slopes = jax.jit(jax.jacrev(losses))(roles.shared['blocks'])
  flat = [
    np.asarray(x).reshape(len(x), world.BLOCKS, -1)
    for x in jax.tree.leaves(slopes)
  ]
  return np.concatenate(flat, axis=2).transpose(1, 0, 2)


def test_scores_are_the_largest_eigenvalues_and_padding_is_not_looked_at():
  algorithm, roles = world.first_stage()
  roles = world.trained(roles)
  exact = [np.linalg.eigvalsh(j @ j.T)[-1] for j in jacobian()]
  found = tangents.eigenvalues(algorithm, roles, batch(ROWS))
  np.testing.assert_allclose(found, exact, rtol=1e-3)
  assert np.ptp(exact) > 0.1 * np.max(exact)
  rows = batch(ROWS)
  other = jnp.where(rows['mask'][:, None, None, None], rows['inputs'], 7)
  again = tangents.eigenvalues(algorithm, roles, rows | {'inputs': other})
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
