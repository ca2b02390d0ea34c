"""How much each block of a client could learn: the largest eigenvalue of its
tangent kernel, for schedules that choose by it.

With J_b the derivative of the losses of a client's first rows by what is
trained in block b, the score is the largest eigenvalue of J_b J_b' (F3OCUS,
arXiv 2411.11912, asks for those of layers' kernels). That the outputs are
losses, a number for each row whatever the task, and how many rows there are, is
ours. The kernel is small and made exactly, by a backward pass for each row: the
models' kernels have no forward derivative.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import compile, tree
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import ActiveSet, Batch, Plan, Roles
from fedms_jax.schedules import Schedule
from fedms_jax.simulation import timeline

ROWS = 32


def active_sets(
  simulation, schedule: Schedule, state, store, cohort
) -> list[ActiveSet]:
  """What is active of each client of a cohort, which its clients are asked
  for their scores if the schedule wants them."""
  asked = (state.progress, cohort.round, cohort.ids)
  if schedule.by_scores is None:
    return schedule.active(*asked)
  with timeline.span('evaluate'):
    scores = block_scores(simulation, state, cohort, store)
  return schedule.by_scores(*asked, scores)


def block_scores(simulation, state, cohort, store) -> np.ndarray:
  """Scores float [K, L] of a cohort, each client with its own rows and state,
  at the roles that the round begins with."""
  algorithm = simulation.stages[state.stage].algorithm
  count, blocks = len(cohort.ids), algorithm.backbone.blocks
  place = simulation.place
  own = place.mine(cohort.ids, simulation.federation.train.num_clients)
  found = np.zeros((count, blocks), np.float32)
  personal = store.gather(cohort.ids[own]) if len(own) else None
  for number, k in enumerate(own):
    rows = first_rows(cohort.rows[k])
    batch = simulation.tables.rows(rows)
    mine = jax.tree.map(lambda x, n=number: x[n], personal)
    roles = state.roles._replace(personal=mine)
    found[k] = eigenvalues(algorithm, roles, batch)
  return place.peers.summed(found)


def first_rows(rows: np.ndarray) -> np.ndarray:
  """The first `ROWS` row numbers of [S, B], int32, filled up with -1."""
  real = rows[rows >= 0][:ROWS]
  return np.pad(real, (0, ROWS - len(real)), constant_values=-1)


def rows_scored(schedule: Schedule, cohort) -> float:
  """How many rows a cohort's clients score their blocks on."""
  if schedule.by_scores is None:
    return 0.0
  each = (cohort.rows >= 0).sum(axis=(1, 2))
  return float(np.minimum(each, ROWS).sum())


@compile.jit(static=(0,), light=True)
def eigenvalues(algorithm: Algorithm, roles: Roles, batch: Batch):
  """The largest eigenvalue of each block's kernel, float32 [L].

  roles: of one client. batch: raw columns and 'mask' [B].
  """
  blocks = algorithm.backbone.blocks
  plan = Plan((True,) * blocks, 0)
  bare = roles._replace(personal=None)
  batch = batch | algorithm.columns(bare, batch, plan)
  stacks = {
    name: {k: v for k, v in role.items() if tree.is_stacked(k)}
    for name, role in (('shared', roles.shared), ('personal', roles.personal))
  }

  def losses(stacks):
    now = roles._replace(
      shared=roles.shared | stacks['shared'],
      personal=roles.personal | stacks['personal'],
    )
    out = algorithm.predict(now, batch, plan).logits[algorithm.served]
    values, weights = algorithm.task.loss(out, batch)
    return jnp.where(weights > 0, values, 0.0)

  values, backward = jax.vjp(losses, stacks)

  def row(_, number):
    one = (jnp.arange(len(values)) == number).astype(values.dtype)
    (slope,) = backward(one)
    flat = [x.reshape(blocks, -1) for x in jax.tree.leaves(slope)]
    return None, jnp.concatenate(flat, axis=1)

  _, jacobian = jax.lax.scan(row, None, jnp.arange(len(values)))
  kernel = jnp.einsum('ilp,jlp->lij', jacobian, jacobian, precision='highest')
  return jnp.linalg.eigvalsh(kernel)[:, -1]
