"""The programs of the next depth, compiled while rounds of this one go on.

A schedule that waits for its score gives time to compile what comes after it.
What that will be is asked of the schedule itself: what it would do if the score
did not move. A program that is compiled too early or in vain changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import jax

from fedms_jax.core import rounds, scoring
from fedms_jax.core.types import ActiveSet, Plan
from fedms_jax.schedules import Schedule
from fedms_jax.simulation import clock, needs
from fedms_jax.simulation.cohorts import Round
from fedms_jax.simulation.execution import Here
from fedms_jax.simulation.planner import Execution, Planner
from fedms_jax.simulation.tables import Tables

_FAR = 64  # rounds that are looked ahead, at most


def foreseen(
  schedule: Schedule, progress: Any, rounds: range, client: int
) -> ActiveSet | None:
  """What will be active next, if the score stays as it is: the first set of
  these rounds that is not that of the first one; None: there is none."""
  now = None
  for number in rounds[:_FAR]:
    (active,) = schedule.active(progress, number, [client])
    if now not in (None, active):
      return active
    now, progress = active, schedule.observe(progress, number, 0.0)
  return None


class Ahead:
  """Compiles in a thread, for one stage, one plan after another."""

  def __init__(self, planner: Planner, tables: Tables):
    self._planner, self._tables = planner, tables
    self._pool = futures.ThreadPoolExecutor(1, 'compile')
    self._begun: dict[Plan, futures.Future] = {}
    self._looked: set[Plan] = set()
    self._met: set[tuple] = set()  # rounds whose programs are there
    self._stop = threading.Event()

  def tell(self, observer: Any, plans: Sequence[Plan], how: Execution) -> None:
    """Says what a round waits for that is the first of its kind."""
    kind = frozenset(plans), how
    if plans and kind not in self._met:
      self._met.add(kind)
      depths = sorted({sum(plan.active) for plan in plans})
      observer.compiling(f'depth {", ".join(map(str, depths))}')

  def wait(self, plans: Sequence[Plan]) -> None:
    """Returns when nothing of these plans is being compiled."""
    began = time.perf_counter()
    for plan in set(plans) & set(self._begun):
      futures.wait([self._begun.pop(plan)])
    waited = time.perf_counter() - began
    jax.monitoring.record_event_duration_secs(clock.WAITED, waited)

  def look(
    self,
    task: Round,
    here: Here,
    how: Execution,
    schedule: Schedule,
    progress: Any,
    rounds: range,
  ) -> None:
    """Begins to compile what comes after the plan of a round, once for each.

    Where clients have plans of their own, or what fits on the device at
    another depth is not known, nothing is foreseen.

    Args:
      task, here, how: of the round.
      schedule: by which it was planned, from the state `progress`.
      rounds: this one and all that are left.
    """
    plans = {task.plans[i] for i in here.places}
    single = len(plans) == 1 and here.place.mesh is None
    if not single or how.mode == 'vmap' or not self._planner.settled:
      return
    if schedule.by_scores is not None or schedule.planned is not None:
      return  # what it does is not known before, or depends on whole cohorts
    (plan,) = plans
    if plan in self._looked:
      return
    self._looked.add(plan)
    active = foreseen(schedule, progress, rounds, int(task.cohort.ids[0]))
    if active is None or not any(active):
      return
    then = Plan(active, min(plan.boundary, active.index(True)), plan.variant)
    count = len(here.places)
    scene = needs.Scene(
      task.algorithm, task.roles, here.table, task.cohort, count, task.channel
    )
    self._begun[then] = self._pool.submit(
      self._compile, scene.shapes(), plan, then, how
    )

  def close(self) -> None:
    """Returns when the program that is being compiled is done."""
    self._stop.set()
    self._pool.shutdown(cancel_futures=True)

  def _compile(self, scene: needs.Scene, now: Plan, then: Plan, how: Execution):
    """In the thread. What fails here fails again, and is told, in the round
    that needs it."""
    width = 1 if how.mode == 'loop' else how.width
    lanes = how.scored or scene.clients
    if jax.tree.leaves(scene.roles.personal):
      lanes = width  # chunks are scored as they were trained
    chunk = needs.training(scene, then, width, how.steps)
    for program, args in (
      (rounds.step_chunk, chunk.step),
      *self._tables.ahead(scene.algorithm, scene.roles, now, then),
      (scoring.evaluate_chunk, needs.validation(scene, then, lanes)),
      (rounds.begin_chunk, chunk.begin),
      (rounds.finish_chunk, chunk.finish),
    ):
      if self._stop.is_set():
        return
      program.program().lower(*args).compile()
