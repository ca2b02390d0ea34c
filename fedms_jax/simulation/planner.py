"""Predicts how many clients can be computed together.

Programs for a few clients are compiled, not run. XLA reports the memory that
they take, which grows linearly with the number of clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax.cluster import memory
from fedms_jax.core import reduction, rounds, scoring, tree
from fedms_jax.core.contract import Algorithm, Clients, Moment, Work
from fedms_jax.core.types import Plan, Roles, Tree
from fedms_jax.data.cohorts import bucket
from fedms_jax.simulation.cohorts import Cohort, Round
from fedms_jax.systems.units import in_bytes

_SMALL = (2, 4)  # clients of the programs that are measured
_SHARE = 0.9  # of the free memory; the rest is lost to fragmentation
_IN_FLIGHT = 2  # rounds whose results may be on the device


class Execution(NamedTuple):
  """mode: vmap, chunk or loop. width: clients per chunk, for chunk. scored:
  clients that are scored together where nothing is personal; 0: all. steps:
  of a client that are one program, for loop."""

  mode: str
  width: int
  scored: int = 0
  steps: int = 1


class Fit(NamedTuple):
  """What fits on one device: clients that train together, and that are scored
  together; bytes that one takes in training, and bytes that are free."""

  trained: int
  scored: int
  each: float
  free: float


class Scene(NamedTuple):
  """The shapes of a round, and how many of its clients one device has: what
  programs are compiled for."""

  algorithm: Algorithm
  roles: Roles
  table: dict[str, jax.Array]
  cohort: Cohort
  clients: int
  channel: Tree = ()


class Planner:
  """Chooses the execution of each round.

  One client at a time is fastest on a CPU. An accelerator gets as many as its
  free memory takes, at most the cohort, in chunks of equal width.
  """

  def __init__(
    self,
    wanted: str = 'auto',
    width: int = 0,
    *,
    memory: float = 0.0,
    devices: int = 1,
    steps: int = 1,
    tell: Callable[[str], None] = lambda text: None,
  ):
    """Plans nothing yet.

    Args:
      wanted: 'auto', 'vmap', 'chunk' or 'loop'.
      width: clients per chunk; 0: as many as fit.
      memory: bytes that each device is assumed to have; 0: what it has.
      devices: that share a chunk.
      steps: see `Execution`.
      tell: is called with a line on what was chosen, and why.
    """
    self._wanted = wanted
    self._width = width
    self._memory = memory
    self._devices = devices
    self._steps = steps
    self._tell = tell
    self._most = 0
    # By algorithm and plan: bytes free, and taken by programs for `_SMALL`.
    self._found: dict[tuple, tuple] = {}

  def choose(
    self,
    task: Round,
    table: dict[str, jax.Array],
    plans: Sequence[Plan],
    sent: int = 0,
  ) -> Execution:
    """The execution of a round.

    Args:
      task: the round. table: that it reads.
      plans: one per client of this process.
      sent: bytes of the table, if another one is sent each round.

    Raises:
      ValueError: not even one client fits; nothing has run.
    """
    on_cpu = jax.default_backend() == 'cpu'
    if self._wanted in ('vmap', 'loop'):
      return Execution(self._wanted, 1, steps=self._steps)
    if self._width:
      return Execution('chunk', self._width)
    if on_cpu and not self._memory:
      if self._wanted == 'auto':
        return self._singly()
      return Execution('chunk', 2 * self._devices)
    if not plans:
      return Execution('chunk', 1)
    # Of several processes, each has now more, now fewer of a cohort.
    self._most = max(self._most, len(plans))
    most = -(-self._most // self._devices)
    scene = Scene(
      task.algorithm, task.roles, table, task.cohort, most, task.channel
    )
    fits = [self._fit(scene, plan, sent) for plan in dict.fromkeys(plans)]
    scored = self._devices * min(most, *(fit.scored for fit in fits))
    width = self._devices * min(most, *(fit.trained for fit in fits))
    if jax.tree.leaves(task.roles.personal):
      width = min(width, scored)  # chunks are scored as they were trained
    # As many chunks as that makes, but of equal width.
    width = -(-self._most // -(-self._most // width))
    self._tell(
      f'{task.algorithm.name}: {width} clients at a time: '
      f'{in_bytes(max(fit.each for fit in fits))} each, '
      f'{in_bytes(min(fit.free for fit in fits))} free'
    )
    if on_cpu and self._wanted == 'auto':
      return self._singly()
    return Execution('chunk', width, scored)

  def _singly(self) -> Execution:
    """One client at a time on each device."""
    if self._devices == 1:
      return Execution('loop', 1, steps=self._steps)
    return Execution('chunk', self._devices)

  def _fit(self, scene: Scene, plan: Plan, sent: int) -> Fit:
    """What fits under a plan. Where all clients fit under the dense one, they
    fit under every other, which then need not be measured."""
    dense = Plan((True,) * len(plan.active), 0, plan.variant)
    if plan != dense:
      # A split of the blocks may copy them.
      split = tree.nbytes(scene.roles.frozen)
      fit = self._predicted(scene, dense, sent + split)
      if min(fit.trained, fit.scored) >= scene.clients:
        return fit
    fit = self._predicted(scene, plan, sent)
    for what, program in (('trained', _training), ('scored', _scoring)):
      if not getattr(fit, what):
        need = program(scene, plan, 1)
        if need > fit.free:
          raise ValueError(_refusal(what, scene, plan, need, fit.free))
        fit = fit._replace(**{what: 1})
    return fit

  def _predicted(self, scene: Scene, plan: Plan, taken: int) -> Fit:
    """What fits beside `taken` bytes."""
    key = (scene.algorithm, plan)
    if key not in self._found:
      self._found[key] = (
        self._free(scene),
        [_training(scene, plan, count) for count in _SMALL],
        [_scoring(scene, plan, count) for count in _SMALL],
      )
    free, *needs = self._found[key]
    free = _SHARE * (free - taken) - _results(scene)
    (trained, each), (scored, _) = (_fitting(need, free) for need in needs)
    return Fit(trained, scored, each, free)

  def _free(self, scene: Scene) -> float:
    if self._memory:
      return self._memory - tree.nbytes((scene.roles, scene.table))
    # What earlier programs still use is not free yet, but will be.
    jax.block_until_ready((scene.roles, scene.table))
    return memory.device()


def padding_efficiency(
  steps: np.ndarray, chunks: Sequence[Any], how: Execution
) -> float:
  """The share of the executed local steps that are real, 0 to 1.

  steps: of each client of the cohort [K]. chunks: of `execution.train`,
  executed as `how`.
  """
  if how.mode == 'loop':
    return 1.0
  real = executed = 0
  for chunk in chunks:
    mine = steps[chunk.places]
    real += int(mine.sum())
    executed += len(chunk.sums['skipped']) * int(mine.max())
  return real / executed if executed else 1.0


def _results(scene: Scene) -> float:
  """Bytes of what rounds leave on the device until it is fetched."""
  roles = scene.roles
  one = tree.nbytes(roles.personal)
  if scene.algorithm.server.reduction == 'stack':
    one += tree.nbytes(roles.shared)
  return float(_IN_FLIGHT * scene.clients * one)


def _fitting(need: Sequence[float], free: float) -> tuple[int, float]:
  """(how many clients fit, bytes that each takes), from what `_SMALL` take."""
  each = max(need[1] - need[0], 1.0) / (_SMALL[1] - _SMALL[0])
  fixed = need[0] - _SMALL[0] * each
  return max(0, math.floor((free - fixed) / each)), each


def _training(scene: Scene, plan: Plan, width: int) -> float:
  """Bytes that the training of a chunk takes beside what is there."""
  algorithm, roles, cohort = scene.algorithm, scene.roles, scene.cohort
  given = _shapes(roles._replace(personal=None))
  totals = None
  if algorithm.server.reduction == 'sum':
    totals = jax.eval_shape(lambda: reduction.empty(algorithm, _shapes(roles)))
  _, _, batch = cohort.rows.shape
  steps = bucket(cohort.steps.max())
  own = Clients(
    ids=jax.ShapeDtypeStruct((width,), np.uint32),
    personal=_personal(roles, width),
    rows=jax.ShapeDtypeStruct((width, steps, batch), np.int32),
    weights=jax.ShapeDtypeStruct((width,), np.float32),
    fresh=cohort.fresh
    if cohort.fresh is None
    else jax.ShapeDtypeStruct((width, cohort.fresh.shape[1]), np.int32),
  )
  moment = Moment(*[jax.ShapeDtypeStruct((), np.int32)] * 4)
  key = jax.eval_shape(lambda: jax.random.key(0))
  work = Work(_shapes(scene.table), key, moment, _shapes(scene.channel))
  compiled = (
    rounds.train_chunk.program()
    .lower(algorithm, plan, given, work, totals, own)
    .compile()
  )
  return tree.nbytes(own) + _taken(compiled)


def _scoring(scene: Scene, plan: Plan, width: int) -> float:
  """Bytes that scoring the served model for so many clients takes."""
  algorithm, roles = scene.algorithm, scene.roles
  held = scene.cohort.validation.shape[1]
  personal = _personal(roles, width)
  whole = Plan((True,) * len(plan.active), plan.boundary)
  compiled = (
    scoring.evaluate_chunk.program()
    .lower(
      scoring.Look(algorithm, whole, (algorithm.served,)),
      _shapes(roles._replace(personal=None)),
      _shapes(scene.table),
      personal,
      jax.ShapeDtypeStruct((width, held), np.int32),
    )
    .compile()
  )
  return tree.nbytes(personal) + _taken(compiled)


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


def _shapes(values: Tree) -> Tree:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), values)


def _personal(roles: Roles, width: int) -> Tree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((width, *x.shape), x.dtype), roles.personal
  )


def _refusal(what: str, scene: Scene, plan: Plan, need, free: float) -> str:
  remedy = {
    'trained': '`Options.batch_size`',
    'scored': '`Options.validation_rows`',
  }[what]
  return (
    f'not one client fits: while it is {what} it takes {in_bytes(need)} '
    f'({scene.algorithm.name}, depth {sum(plan.active)}) beside model and '
    f'data, and {in_bytes(max(free, 0.0))} are free. Lower {remedy}, or try '
    '`TransformerConfig.remat`, `TransformerConfig.dtype`=bfloat16 or, of a '
    'checkpoint, `Options.storage`=int8.'
  )
