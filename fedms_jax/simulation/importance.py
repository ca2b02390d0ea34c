"""How much each block matters, for schedules that order by importance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import arrays, reduction, seeds, tree
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Plan, Roles
from fedms_jax.simulation import execution, live
from fedms_jax.simulation.cohorts import Round


def block_importance(simulation, stage: int, roles: Roles) -> list[float]:
  """The norm of each block's mean gradient, as the first cohort sees it.

  One dense step of plain SGD with unit learning rate (`Stage.probe`), whose
  result is dropped; one number per block, the same for every client.
  """
  chosen = simulation.stages[stage]
  algorithm = chosen.probe or chosen.algorithm
  blocks = algorithm.backbone.blocks
  sample, arrivals = live.sampler(simulation, stage, timed=False)
  cohort = sample(arrivals.init, 0)
  rows = cohort.rows[:, :1]
  plan = Plan((True,) * blocks, 0)
  place, count = simulation.place, len(cohort.ids)
  own = place.mine(cohort.ids, simulation.federation.train.num_clients)
  table, translate = simulation.tables.view(algorithm, roles, rows[own], plan)
  personal = arrays.repeated(roles.personal, len(own))
  before, memory, channel = reduction.begin(algorithm, roles, 0)
  after = execution.train(
    Round(
      algorithm,
      before,
      memory,
      channel,
      cohort._replace(rows=rows, steps=np.minimum(cohort.steps, 1)),
      [plan] * count,
      seeds.stream(0, Stream.IMPORTANCE, stage),
      rates=simulation.local(stage).rates,
    ),
    execution.Here(place, table, translate(rows), own, personal),
    execution.Execution('loop' if place.mesh is None else 'chunk', 1),
  )
  personal = np.zeros(blocks)
  for chunk in after.chunks:
    start = jax.tree.map(lambda x: x[None], roles.personal)
    count_here = len(chunk.places)
    kept = jax.tree.map(lambda x, n=count_here: x[:n], chunk.personal)
    personal += _squares(tree.subtract(kept, start), 1)
  squares = _squares(tree.subtract(after.roles.shared, roles.shared), 0)
  squares += place.peers.summed(personal) / count**2
  return [float(x) for x in np.sqrt(squares)]


def _squares(moved, axis: int) -> np.ndarray | float:
  """Sums of squares by block, which stacked leaves have at this axis."""
  total = 0.0
  for key, value in moved.items():
    if tree.is_stacked(key):
      for leaf in jax.tree.leaves(value):
        axes = tuple(a for a in range(leaf.ndim) if a != axis)
        total = total + np.asarray(jnp.sum(jnp.square(leaf), axis=axes))
  return total
