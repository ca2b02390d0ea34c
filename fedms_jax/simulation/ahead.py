"""The programs of a depth, compiled side by side, and those of the next one
while rounds of this one go on.

A schedule that waits for its score gives time to compile what comes after it.
What that will be is asked of the schedule itself: what it would do if the score
did not move. A program that is compiled too early or in vain changes nothing.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import jax

from fedms_jax.core import rounds, scoring
from fedms_jax.core.compile import Jitted, Program
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Plan
from fedms_jax.schedules import Schedule
from fedms_jax.simulation import clock, needs
from fedms_jax.simulation.cohorts import Round
from fedms_jax.simulation.execution import Here
from fedms_jax.simulation.planner import Execution, Planner
from fedms_jax.simulation.tables import Tables

_FAR = 64  # rounds that are looked ahead, at most
# XLA compiles a small program in one thread for most of the time.
_THREADS = 2


def foreseen(
  schedule: Schedule, progress: Any, rounds: range, client: int, now: Plan
) -> Iterator[Plan]:
  """The plans that will come after that of the first of these rounds, if the
  score stays as it is."""
  last = None
  for number in rounds[:_FAR]:
    (active,) = schedule.active(progress, number, [client])
    if last not in (None, active) and any(active):
      boundary = min(now.boundary, active.index(True))
      now = Plan(active, boundary, now.variant)
      yield now
    last, progress = active, schedule.observe(progress, number, 0.0)


class Opening(NamedTuple):
  """The first round of a stage: its shapes, the plan of all of its clients, how
  it is executed (None: that is to be measured), whether they are validated, and
  the programs that run before it."""

  scene: needs.Scene
  plan: Plan
  how: Execution | None
  scored: bool
  before: list[Program]


Key = tuple[Algorithm, Plan, Execution | None]


class Ahead:
  """Compiles in threads: for one plan after another, and for what comes after
  a stage, see `coming.py`."""

  def __init__(self, planner: Planner, tables: Tables):
    self._planner, self._tables = planner, tables
    self._pool = futures.ThreadPoolExecutor(_THREADS, 'compile')
    # What begins the programs of a plan, and these.
    self._begun: dict[Key, tuple[futures.Future, list[futures.Future]]] = {}
    self._steady: dict[Key, bool] = {}
    self._met: set[tuple] = set()  # rounds whose programs are there
    # What looks for programs of what comes after a stage, by what that is.
    self._coming: dict[Hashable, futures.Future] = {}
    self._last: dict[Hashable, list[futures.Future]] = {}  # the evaluation's
    self._opens = False
    self._stop = threading.Event()

  @property
  def idle(self) -> bool:
    """Whether nothing is being compiled, or waits for it."""
    begun = list(self._begun.values())  # a thread may add to it meanwhile
    found = [x for first, many in begun for x in (first, *many)]
    found += [*self._coming.values(), *itertools.chain(*self._last.values())]
    return all(x.done() for x in found)

  def stage(self, algorithm: Algorithm) -> None:
    """A stage begins: what was to be compiled for another one is dropped."""
    self._opens = True
    self._steady.clear()
    self._drop(algorithm)

  def expected(self, task: Round, observer: Any) -> None:
    """Returns when those programs of a round are there that were begun before
    its table is; says what it waits for."""
    if self._opens:
      self._wait(self._coming.values())
      self._coming.clear()
      self._opens = False
    keys = {(task.algorithm, plan) for plan in task.plans}
    # A thread may add to it meanwhile.
    begun = [x for key, x in list(self._begun.items()) if key[:2] in keys]
    if not all(x.done() for found, many in begun for x in (found, *many)):
      _tell(observer, task.plans)
    self._await(begun)

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
    kind = task.algorithm, frozenset(plans), how
    keys = [(task.algorithm, plan, how) for plan in dict.fromkeys(plans)]
    if plans and kind not in self._met:
      self._met.add(kind)
      _tell(observer, plans)
      if _known(task, here, how):
        scene = _scene(task, here)
        self._submit(keys[0], self._training(scene, plans[0], how, scored))
    self._await([self._begun[key] for key in keys if key in self._begun])

  def look(
    self,
    task: Round,
    here: Here,
    how: Execution,
    scored: bool,
    schedule: Schedule,
    progress: Any,
    rounds: int,
  ) -> bool:
    """Begins to compile what comes after the plan of a round, once for each;
    whether nothing else is foreseen in the stage.

    Where clients have plans of their own, or what fits on the device at
    another depth is not known, nothing is foreseen.

    Args:
      task, here, how, scored: see `ready`.
      schedule: by which it was planned, from the state `progress`.
      rounds: of the stage.
    """
    if not (_known(task, here, how) and self._planner.settled):
      return False
    if schedule.by_scores is not None or schedule.planned is not None:
      return False  # it is not known before, or depends on whole cohorts
    plan = task.plans[here.places[0]]
    key = task.algorithm, plan, how
    if key in self._steady:
      return self._steady[key]
    left = range(task.cohort.round, rounds)
    client = int(task.cohort.ids[0])
    then = next(foreseen(schedule, progress, left, client, plan), None)
    self._steady[key] = then is None
    if then is None:
      return True
    programs = self._next(_scene(task, here), plan, then, how, scored)
    self._submit((task.algorithm, then, how), programs)
    return False

  def open(self, key: Hashable, find: Callable[[], Iterable[Opening]]) -> None:
    """Begins to compile the first rounds of a stage, once for a key."""

    def begin():
      for scene, plan, how, scored, before in find():
        key = scene.algorithm, plan, how
        if how is None:
          self._submit(key, before)
          self._planner.measure(scene, plan)
        else:
          training = self._training(scene, plan, how, scored)
          self._submit(key, itertools.chain(before, training))

    if key not in self._coming:
      self._coming[key] = self._pool.submit(begin)

  def evaluate(
    self, key: Hashable, find: Callable[[], Iterable[Program]]
  ) -> None:
    """Begins to compile the evaluation after the last stage, once for a key."""
    if key not in self._coming:
      many = self._last[key] = []
      self._coming[key] = self._pool.submit(self._each, find, many)

  def evaluated(
    self, key: Hashable, find: Callable[[], Iterable[Program]]
  ) -> None:
    """Returns when the programs of the evaluation are there."""
    self._drop()
    for other, many in self._last.items():
      if other != key:
        _cancelled(many)
    self.evaluate(key, find)
    self._wait([self._coming[key]])
    self._wait(self._last[key])

  def close(self) -> None:
    """Returns when the programs that are being compiled are done."""
    self._stop.set()
    self._pool.shutdown(cancel_futures=True)

  def _drop(self, kept: Algorithm | None = None) -> None:
    """Forgets programs that no thread has begun to compile, but those of an
    algorithm that is kept."""
    for key, (beginning, many) in list(self._begun.items()):
      if key[0] is not kept and _cancelled([beginning, *many]):
        del self._begun[key]

  def _await(self, begun: Iterable[tuple]) -> None:
    for beginning, many in begun:
      self._wait([beginning])  # then there are no more of them
      self._wait(many)

  def _wait(self, what: Iterable[futures.Future]) -> None:
    """Waits, and tells the clock for how long."""
    began = time.perf_counter()
    futures.wait(list(what))
    waited = time.perf_counter() - began
    jax.monitoring.record_event_duration_secs(clock.WAITED, waited)

  def _submit(self, key: Key, programs: Iterable[Program]) -> None:
    """Begins to compile programs, each in a thread, that are found in one; once
    for a key."""
    if key in self._begun:
      return
    many: list[futures.Future] = []
    # What fails here fails again, and is told, in the round that needs it.
    beginning = self._pool.submit(self._each, lambda: programs, many)
    self._begun[key] = beginning, many

  def _each(
    self, find: Callable[[], Iterable[Program]], begun: list[futures.Future]
  ) -> None:
    for program, args in find():
      if self._stop.is_set():
        return
      begun.append(self._pool.submit(_compiled, program, args))

  def _next(
    self,
    scene: needs.Scene,
    now: Plan,
    then: Plan,
    how: Execution,
    scored: bool,
  ) -> Iterator[Program]:
    """The programs of the plan `then` after the plan `now`."""
    yield from self._tables.ahead(scene.algorithm, scene.roles, now, then)
    yield from self._training(scene, then, how, scored)

  def _training(
    self, scene: needs.Scene, plan: Plan, how: Execution, scored: bool
  ) -> Iterator[Program]:
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


def _cancelled(many: list[futures.Future]) -> bool:
  """Cancels what has not begun; whether there was any."""
  return any([future.cancel() for future in many])


def _tell(observer: Any, plans: Iterable[Plan]) -> None:
  """Says which depths are compiled for."""
  depths = sorted({sum(plan.active) for plan in plans})
  observer.compiling(f'depth {", ".join(map(str, depths))}')


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
