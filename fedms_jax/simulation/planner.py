"""Predicts how many clients can be computed together.

Programs for a few clients are compiled, not run: of the dense plan and, if that
does not fit, of the last block alone. XLA reports the memory that they take,
which grows linearly with the number of clients, and with the blocks that a
client goes back through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedms_jax.cluster import memory
from fedms_jax.core import tree
from fedms_jax.core.types import Plan
from fedms_jax.data.cohorts import best_width
from fedms_jax.simulation.cohorts import Round
from fedms_jax.simulation.needs import Scene, of_scoring, of_training
from fedms_jax.systems.units import in_bytes

_FEW = 4  # clients of the programs that are measured, at most
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
    self._held = 0.0
    # Whether the last choice holds for every other plan, too.
    self.settled = True
    self._steps_of_all: np.ndarray | None = None
    # By algorithm and plan: bytes free, clients, and bytes that they need.
    self._found: dict[tuple, tuple] = {}
    # Bytes by program, algorithm, plan and clients.
    self._measured: dict[tuple, float] = {}

  def begin(self, steps: np.ndarray, held: float = 0.0) -> None:
    """A stage begins. steps: of as many clients as take part in a round here,
    that stand for all, int [K]: by them one width is chosen for all rounds.
    held: bytes that lie on the device beside models and tables."""
    self._held = held
    self._most = max(self._most, len(steps))
    self._steps_of_all = steps

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
    given = self.given()
    if given is not None:
      return given
    if not plans:
      return Execution('chunk', 1)
    # Of several processes, each has now more, now fewer of a cohort.
    self._most = max(self._most, len(plans))
    most = -(-self._most // self._devices)
    scene = _scene(task, table, most)
    fits = [self._fit(scene, plan, sent) for plan in dict.fromkeys(plans)]
    every = {Plan((True,) * len(p.active), 0, p.variant) for p in plans}
    dense = [self._predicted(scene, plan, sent) for plan in every]
    self.settled = min(min(f.trained, f.scored) for f in dense) >= most
    scored = self._devices * min(most, *(fit.scored for fit in fits))
    width = self._devices * min(most, *(fit.trained for fit in fits))
    if jax.tree.leaves(task.roles.personal):
      width = min(width, scored)  # chunks are scored as they were trained
    width = self._narrowed(width)
    each, free = max(f.each for f in fits), min(f.free for f in fits)
    self._tell(
      f'{task.algorithm.name}: {width} clients at a time: {in_bytes(each)} '
      f'each, {in_bytes(free)} free'
    )
    if jax.default_backend() == 'cpu' and self._wanted == 'auto':
      return self._singly()
    return Execution('chunk', width, scored)

  def given(self) -> Execution | None:
    """The execution of all rounds, where nothing is measured for it."""
    if self._wanted in ('vmap', 'loop'):
      return Execution(self._wanted, 1, steps=self._steps)
    if self._width:
      return Execution('chunk', self._width)
    if jax.default_backend() != 'cpu' or self._memory:
      return None
    if self._wanted == 'auto':
      return self._singly()
    return Execution('chunk', 2 * self._devices)

  def measure(self, scene: Scene, plan: Plan) -> None:
    """Compiles what `choose` will measure first where it is asked for rounds
    of this plan."""
    dense = Plan((True,) * len(plan.active), 0, plan.variant)
    few = max(1, min(_FEW, scene.clients))
    for program in (of_training, of_scoring):
      self._needed(program, scene, dense, 0, few)

  def _singly(self) -> Execution:
    """One client at a time on each device."""
    if self._devices == 1:
      return Execution('loop', 1, steps=self._steps)
    return Execution('chunk', self._devices)

  def _narrowed(self, width: int) -> int:
    """The width of chunks at most so wide by which clients of unlike length
    wait the least; as many chunks as that makes, of equal width."""
    steps = self._steps_of_all
    if steps is not None and len(steps):
      width = best_width(steps, width, self._devices)
    return -(-self._most // -(-self._most // width))

  def _fit(self, scene: Scene, plan: Plan, sent: int) -> Fit:
    """What fits under a plan. Where all clients fit under the dense one, they
    fit under every other, for which then nothing is compiled."""
    dense = Plan((True,) * len(plan.active), 0, plan.variant)
    if plan != dense:
      # A split of the blocks may copy them.
      split = tree.nbytes(scene.roles.frozen)
      fit = self._predicted(scene, dense, sent + split)
      if min(fit.trained, fit.scored) >= scene.clients:
        return fit
    fit = self._predicted(scene, plan, sent)
    for what, program in (('trained', of_training), ('scored', of_scoring)):
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
      few = max(1, min(_FEW, scene.clients))
      # Backpropagation ends at the lowest active block, a score at the prefix.
      lowest = plan.active.index(True) if any(plan.active) else 0
      self._found[key] = (
        self._free(scene),
        few,
        self._needed(of_training, scene, plan, lowest, few),
        self._needed(of_scoring, scene, plan, plan.boundary, few),
      )
    free, few, *needs = self._found[key]
    free = _SHARE * (free - taken) - _results(scene)
    fixed = tree.nbytes(scene.roles.frozen)
    trained, scored = (_fitting(need, few, fixed, free) for need in needs)
    return Fit(trained, scored, needs[0] / few, free)

  def _needed(self, program, scene: Scene, plan: Plan, lowest: int, few: int):
    """Bytes that a program for a few clients takes of which `lowest` is the
    first block that counts: between the bytes of the dense plan and those of
    the last block alone, which are measured."""
    blocks = len(plan.active)
    last = tuple(b == blocks - 1 for b in range(blocks))

    def measured(active, boundary):
      ours = Plan(active, boundary, plan.variant)
      key = program, scene.algorithm, ours, few
      if key not in self._measured:
        self._measured[key] = program(scene, ours, few)
      return self._measured[key]

    whole = measured((True,) * blocks, 0)
    if not lowest:
      return whole
    part = measured(last, blocks - 1)
    return part + (whole - part) * (blocks - 1 - lowest) / (blocks - 1)

  def _free(self, scene: Scene) -> float:
    if self._memory:
      return self._memory - tree.nbytes((scene.roles, scene.table)) - self._held
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


def _scene(task: Round, table: dict[str, jax.Array], most: int) -> Scene:
  return Scene(
    task.algorithm, task.roles, table, task.cohort, most, task.channel,
    task.rates,
  )  # fmt: skip


def _results(scene: Scene) -> float:
  """Bytes of what rounds leave on the device until it is fetched."""
  roles = scene.roles
  one = tree.nbytes(roles.personal)
  if scene.algorithm.server.reduction == 'stack':
    one += tree.nbytes(roles.shared)
  return float(_IN_FLIGHT * scene.clients * one)


def _fitting(need: float, few: int, fixed: float, free: float) -> int:
  """How many clients fit, if a few of them need so many bytes, of which at
  most `fixed` are the same for any number: no more than do in either case."""
  if need <= free:
    return math.floor(free / max(need, 1.0) * few)
  fixed = min(fixed, need - 1.0)
  return max(0, math.floor((free - fixed) / (need - fixed) * few))


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
