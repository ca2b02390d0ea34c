"""How much each block matters, for schedules that order by importance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax import rng, rounds, tree
from fedms_jax.base import Plan, Roles
from fedms_jax.simulation import execution


def block_importance(simulation, stage: int, roles: Roles) -> list[float]:
  """The norm of each block's mean gradient, as the first cohort sees it.

  One dense step of plain SGD with unit learning rate (`Stage.probe`), whose
  result is dropped; one number per block, the same for every client.
  """
  chosen = simulation.stages[stage]
  algorithm = chosen.probe or chosen.algorithm
  cohort = simulation.sampler(stage)(0)
  rows = cohort.rows[:, :1]
  plan = Plan((True,) * simulation.backbone.blocks, 0)
  table, translate = simulation.tables.view(algorithm, roles, rows, plan)
  count = len(cohort.ids)
  personal = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (count, *x.shape)), roles.personal
  )
  after, _, chunks, _ = execution.train(
    algorithm,
    roles,
    rounds.begin_server(algorithm, roles.shared),
    personal,
    table,
    cohort._replace(rows=rows, steps=np.minimum(cohort.steps, 1)),
    translate(rows),
    [plan] * count,
    rng.stream(0, rng.SCHEDULE, stage),
    execution.Execution('loop', 1),
  )
  moved = [tree.subtract(after.shared, roles.shared)]
  for chunk in chunks:
    start = jax.tree.map(lambda x: x[None], roles.personal)
    delta = tree.subtract(chunk.personal, start)
    moved.append(jax.tree.map(lambda x: jnp.mean(x, 0) / count, delta))
  squares = np.zeros(simulation.backbone.blocks)
  for part in moved:
    for key, value in part.items():
      if tree.is_stacked(key):
        for leaf in jax.tree.leaves(value):
          axes = tuple(range(1, leaf.ndim))
          squares += np.asarray(jnp.sum(jnp.square(leaf), axis=axes))
  return [float(x) for x in np.sqrt(squares)]
