"""What memory programs take, as XLA says when it has compiled them.

Nothing runs; but a program that is then called with arrays of these shapes is
not compiled again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedms_jax.core import reduction, rounds, scoring, tree
from fedms_jax.core.contract import (
  Algorithm,
  Clients,
  Moment,
  Received,
  Work,
)
from fedms_jax.core.types import Plan, Roles, Tree
from fedms_jax.simulation.cohorts import Cohort


class Arguments(NamedTuple):
  """What `begin_chunk`, `step_chunk` and `finish_chunk` are called with."""

  begin: tuple
  step: tuple
  finish: tuple


def arguments(
  algorithm: Algorithm,
  plan: Plan,
  roles: Roles,
  work: Work,
  totals: Received | None,
  clients: Clients,
  *,
  together: int = 1,
  mesh: Mesh | None = None,
) -> Arguments:
  """What `train` calls its programs with, to lower them before they run: arrays
  or shapes as they are given, and shapes of what is made on the way."""
  roles = roles._replace(personal=None)
  lanes, _, batch = clients.rows.shape
  static = algorithm, plan, mesh
  its = clients._replace(rows=None)
  steps = jax.ShapeDtypeStruct((lanes,), np.int32)
  number = jax.ShapeDtypeStruct((), np.int32)
  some = jax.ShapeDtypeStruct((lanes, together, batch), np.int32)
  given = roles, work, its, steps
  carry = rounds.begin_chunk.program().eval_shape(*static, *given)
  now = roles, work, clients._replace(rows=some), steps, number
  return Arguments(
    (*static, *given),
    (*static, carry, *now),
    (*static, totals, carry, *given),
  )


class Scene(NamedTuple):
  """The shapes of a round, and how many of its clients one device has: what
  programs are compiled for. rates: see `Moment`."""

  algorithm: Algorithm
  roles: Roles
  table: dict[str, jax.Array]
  cohort: Cohort
  clients: int
  channel: Tree = ()
  rates: Mapping[str, float] = {}

  def shapes(self) -> Scene:
    """The scene without its arrays."""
    return self._replace(
      roles=tree.shapes(self.roles),
      table=tree.shapes(self.table),
      channel=tree.shapes(self.channel),
    )


def of_training(scene: Scene, plan: Plan, width: int) -> float:
  """Bytes that the training of a chunk takes beside what is there."""
  args = training(scene, plan, width)
  carry, (_, _, _, totals, *_) = args.step[3], args.finish
  step = rounds.step_chunk.program().lower(*args.step).compile()
  # At the end a client is there as it was trained, and as it is sent and kept.
  sent = rounds.finish_chunk.program().eval_shape(*args.finish)
  beside = max(_taken(step), tree.nbytes(sent) - tree.nbytes(totals))
  own = tree.shapes(scene.roles.personal, width)
  return tree.nbytes((own, carry.state, carry.sums)) + beside


def training(
  scene: Scene, plan: Plan, width: int, together: int = 1
) -> Arguments:
  """What the programs of a chunk are called with, in shapes.

  together: see `rounds.train`.
  """
  algorithm, roles, cohort = scene.algorithm, scene.roles, scene.cohort
  given = tree.shapes(roles._replace(personal=None))
  totals = None
  if algorithm.server.reduction == 'sum':
    totals = reduction.empty_shapes(algorithm, roles)
  own = Clients(
    ids=jax.ShapeDtypeStruct((width,), np.uint32),
    personal=tree.shapes(roles.personal, width),
    rows=jax.ShapeDtypeStruct((width, *cohort.rows.shape[1:]), np.int32),
    weights=jax.ShapeDtypeStruct((width,), np.float32),
    fresh=cohort.fresh
    if cohort.fresh is None
    else jax.ShapeDtypeStruct((width, cohort.fresh.shape[1]), np.int32),
  )
  rates = {x: jax.ShapeDtypeStruct((), np.float32) for x in scene.rates}
  one = jax.ShapeDtypeStruct((), np.int32)
  moment = Moment(one, one, one, one, rates)
  key = jax.eval_shape(lambda: jax.random.key(0))
  work = Work(tree.shapes(scene.table), key, moment, tree.shapes(scene.channel))
  return arguments(algorithm, plan, given, work, totals, own, together=together)


def of_scoring(scene: Scene, plan: Plan, width: int) -> float:
  """Bytes that scoring the served model for so many clients takes."""
  args = validation(scene, plan, width)
  compiled = scoring.evaluate_chunk.program().lower(*args).compile()
  return tree.nbytes(tree.shapes(scene.roles.personal, width)) + _taken(
    compiled
  )


def validation(scene: Scene, plan: Plan, width: int) -> tuple:
  """What the program that scores so many clients is called with, in shapes."""
  algorithm, roles = scene.algorithm, scene.roles
  held = scene.cohort.validation.shape[1]
  whole = Plan((True,) * len(plan.active), plan.boundary)
  return (
    scoring.Look(algorithm, whole, (algorithm.served,)),
    tree.shapes(roles._replace(personal=None)),
    tree.shapes(scene.table),
    tree.shapes(roles.personal, width),
    jax.ShapeDtypeStruct((width, held), np.int32),
  )


def _taken(compiled) -> float:
  """Bytes that a program allocates: its workspace and its results."""
  found = compiled.memory_analysis()
  if found is None:
    raise ValueError(
      'this back-end does not say what memory a program takes, so that '
      'chunks cannot be planned. Give `Options.chunk`=<clients>.'
    )
  results = found.output_size_in_bytes - found.alias_size_in_bytes
  return float(found.temp_size_in_bytes + results)
