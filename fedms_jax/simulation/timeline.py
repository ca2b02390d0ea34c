"""Where a round's time goes: spans of the host, which a profile adds up.

JAX computes while the host goes on, so a span of the host says nothing unless
it waits for what it started. That is done only while a `Timeline` measures; at
all other times a span costs a look-up and does not wait.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax

# In the order in which a round comes by them.
NAMES = (
  'sample',  # wait for the cohort and the rows of its steps
  'load',  # rows and personal states, into the host's memory
  'transfer',  # from there to the device
  'columns',  # derive columns
  'train',  # local training
  'reduce',  # the server's step
  'evaluate',  # score the cohort's validation rows
  'store',  # keep personal states and checkpoints
)

_Item = TypeVar('_Item')
_current: contextvars.ContextVar[Timeline | None] = contextvars.ContextVar(
  'timeline', default=None
)


def _same(value: Any) -> Any:
  return value


@contextlib.contextmanager
def span(name: str) -> Iterator[Callable[[Any], Any]]:
  """A part of a round, one of `NAMES`: gives a function that returns what it
  is given, and, while a timeline measures, waits for its arrays."""
  if name not in NAMES:
    raise ValueError(f'{name!r} is no span; allowed: {", ".join(NAMES)}.')
  timeline = _current.get()
  if timeline is None:
    yield _same
    return
  with timeline.measured(name), jax.profiler.TraceAnnotation(name):
    yield jax.block_until_ready


def rounds(stage: str, items: Iterable[_Item]) -> Iterator[_Item]:
  """The cohorts of a stage's rounds; waiting for one is the span `sample`,
  with which its round begins."""
  timeline, source = _current.get(), iter(items)
  try:
    while True:
      if timeline is not None:
        timeline.begin_round(stage)
      with span('sample'):
        next_one = list(itertools.islice(source, 1))
      if not next_one:
        break
      yield next_one[0]
  finally:  # also of a stage that ends early
    if timeline is not None:
      timeline.end_stage()


class Timeline:
  """Seconds of each span in each round.

  warm_up: rounds of a stage that are not measured. trace: a stage's name -> a
  context manager, entered before its first measured round and left after its
  last. seconds: by stage, one dict per round: by span, and 'round' in total.
  """

  def __init__(
    self,
    warm_up: int = 0,
    trace: Callable[[str], Any] = contextlib.nullcontext,
  ):
    self.seconds: dict[str, list[dict[str, float]]] = {}
    self._warm_up = warm_up
    self._trace = trace
    self._tracing = contextlib.ExitStack()
    self._step = contextlib.ExitStack()
    self._number = 0
    self._began = 0.0
    self._spans: dict[str, float] = collections.defaultdict(float)
    self._inner: list[float] = []  # seconds of spans within the open ones

  @contextlib.contextmanager
  def measuring(self) -> Iterator[Timeline]:
    """Spans inside are measured by this timeline."""
    token = _current.set(self)
    try:
      yield self
    finally:
      _current.reset(token)
      self._step.close()
      self._tracing.close()

  @contextlib.contextmanager
  def measured(self, name: str) -> Iterator[None]:
    """Adds the time inside to a span; what an inner span takes is its own."""
    start = time.perf_counter()
    self._inner.append(0.0)
    try:
      yield
    finally:
      whole = time.perf_counter() - start
      self._spans[name] += whole - self._inner.pop()
      if self._inner:
        self._inner[-1] += whole

  def begin_round(self, stage: str) -> None:
    """Ends the stage's round before, if there is one, and begins another."""
    self._end_round(stage)
    if self._number == self._warm_up:
      self._tracing.enter_context(self._trace(stage))
    self._step.enter_context(
      jax.profiler.StepTraceAnnotation('round', step_num=self._number)
    )
    self._number += 1
    self._spans.clear()
    self._began = time.perf_counter()

  def end_stage(self) -> None:
    """There was no other round to begin."""
    self._step.close()
    self._tracing.close()
    self._number = 0

  def _end_round(self, stage: str) -> None:
    self._step.close()
    if self._number > self._warm_up:
      total = time.perf_counter() - self._began
      self.seconds.setdefault(stage, []).append(
        dict(self._spans) | {'round': total}
      )
