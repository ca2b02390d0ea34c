"""The programs of a depth, compiled side by side, and those of the next one
while rounds of this one go on.

A schedule that waits for its score gives time to compile what comes after it.
What that will be is asked of the schedule itself: what it would do if the score
did not move. A program that is compiled too early or in vain changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import jax

from fedms_jax.core import rounds, scoring
from fedms_jax.core.compile import Jitted
from fedms_jax.core.types import ActiveSet, Plan
from fedms_jax.schedules import Schedule
from fedms_jax.simulation import clock, needs
from fedms_jax.simulation.cohorts import Round
from fedms_jax.simulation.execution import Here
from fedms_jax.simulation.planner import Execution, Planner
from fedms_jax.simulation.tables import Tables

_FAR = 64  # rounds that are looked ahead, at most
# XLA compiles a small program in one thread for most of the time.
_THREADS = 2

Programs = Iterator[tuple[Jitted, tuple]]  # and what each is called with


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
  """Compiles in threads, for one stage, one plan after another."""

  def __init__(self, planner: Planner, tables: Tables):
    self._planner, self._tables = planner, tables
    self._pool = futures.ThreadPoolExecutor(_THREADS, 'compile')
    # By plan: what begins its programs, and these.
    self._begun: dict[Plan, tuple[futures.Future, list[futures.Future]]] = {}
    self._looked: set[Plan] = set()
    self._met: set[tuple] = set()  # rounds whose programs are there
    self._stop = threading.Event()

  def ready(
    self, task: Round, here: Here, how: Execution, scored: bool, observer: Any
  ) -> None:
    """Returns when the programs of a round are there, as far as they are known
    before it, and says what it waits for if it is the first of its kind.

    Args:
      task, here, how: of the round.
      scored: whether its clients are validated.
      observer: is told.
    """
    plans = [task.plans[i] for i in here.places]
    kind = frozenset(plans), how
    if plans and kind not in self._met:
      self._met.add(kind)
      depths = sorted({sum(plan.active) for plan in plans})
      observer.compiling(f'depth {", ".join(map(str, depths))}')
      if _known(task, here, how) and plans[0] not in self._begun:
        scene = _scene(task, here)
        self._submit(plans[0], self._training(scene, plans[0], how, scored))
    began = time.perf_counter()
    for plan in set(plans) & set(self._begun):
      beginning, begun = self._begun.pop(plan)
      futures.wait([beginning])  # then there are no more of them
      futures.wait(begun)
    waited = time.perf_counter() - began
    jax.monitoring.record_event_duration_secs(clock.WAITED, waited)

  def look(
    self,
    task: Round,
    here: Here,
    how: Execution,
    scored: bool,
    schedule: Schedule,
    progress: Any,
    rounds: range,
  ) -> None:
    """Begins to compile what comes after the plan of a round, once for each.

    Where clients have plans of their own, or what fits on the device at
    another depth is not known, nothing is foreseen.

    Args:
      task, here, how, scored: see `ready`.
      schedule: by which it was planned, from the state `progress`.
      rounds: this one and all that are left.
    """
    if not (_known(task, here, how) and self._planner.settled):
      return
    if schedule.by_scores is not None or schedule.planned is not None:
      return  # what it does is not known before, or depends on whole cohorts
    plan = task.plans[here.places[0]]
    if plan in self._looked:
      return
    self._looked.add(plan)
    active = foreseen(schedule, progress, rounds, int(task.cohort.ids[0]))
    if active is None or not any(active):
      return
    then = Plan(active, min(plan.boundary, active.index(True)), plan.variant)
    self._submit(then, self._next(_scene(task, here), plan, then, how, scored))

  def close(self) -> None:
    """Returns when the programs that are being compiled are done."""
    self._stop.set()
    self._pool.shutdown(cancel_futures=True)

  def _submit(self, plan: Plan, programs: Programs) -> None:
    """Begins to compile programs, each in a thread, that are found in one."""
    begun: list[futures.Future] = []

    def begin():
      # What fails here fails again, and is told, in the round that needs it.
      for program, args in programs:
        if self._stop.is_set():
          return
        begun.append(self._pool.submit(_compiled, program, args))

    self._begun[plan] = self._pool.submit(begin), begun

  def _next(
    self,
    scene: needs.Scene,
    now: Plan,
    then: Plan,
    how: Execution,
    scored: bool,
  ) -> Programs:
    """The programs of the plan `then` after the plan `now`."""
    yield from self._tables.ahead(scene.algorithm, scene.roles, now, then)
    yield from self._training(scene, then, how, scored)

  def _training(
    self, scene: needs.Scene, plan: Plan, how: Execution, scored: bool
  ) -> Programs:
    """The programs of a chunk, those that take longest first."""
    width = 1 if how.mode == 'loop' else how.width
    lanes = how.scored or scene.clients
    if jax.tree.leaves(scene.roles.personal):
      lanes = width  # chunks are scored as they were trained
    chunk = needs.training(scene, plan, width, how.steps)
    yield rounds.step_chunk, chunk.step
    if scored:
      yield scoring.evaluate_chunk, needs.validation(scene, plan, lanes)
    yield rounds.finish_chunk, chunk.finish
    yield rounds.begin_chunk, chunk.begin


def _compiled(program: Jitted, args: tuple) -> None:
  program.program().lower(*args).compile()


def _known(task: Round, here: Here, how: Execution) -> bool:
  """Whether what a round's programs are called with is known before it."""
  wire = task.algorithm.channel.wire
  plain = wire.open is None and wire.receive is None
  single = len({task.plans[i] for i in here.places}) == 1
  alone = here.place.mesh is None
  return plain and single and alone and how.mode != 'vmap'


def _scene(task: Round, here: Here) -> needs.Scene:
  """The shapes of a round."""
  scene = needs.Scene(
    task.algorithm,
    task.roles,
    here.table,
    task.cohort,
    len(here.places),
    task.channel,
    task.rates,
  )
  return scene.shapes()
