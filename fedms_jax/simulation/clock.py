"""Seconds that went into compilation, as JAX itself reports them, and that the
run waited for: what another thread compiles meanwhile costs it none."""

from __future__ import annotations

import threading
import time

import jax

WAITED = '/fedms_jax/compile/wait_duration'  # for such a thread
EVENTS = (
  WAITED,
  '/jax/core/compile/jaxpr_trace_duration',
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)


class Clock:
  """Wall-clock seconds since its creation, and those that the thread that made
  it spent compiling."""

  def __init__(self):
    self._start = time.perf_counter()
    self.compile_seconds = 0.0
    self._thread = threading.get_ident()
    jax.monitoring.register_event_duration_secs_listener(self._note)

  def _note(self, event: str, duration_secs: float, **unused) -> None:
    if event in EVENTS and threading.get_ident() == self._thread:
      self.compile_seconds += duration_secs

  @property
  def run_seconds(self) -> float:
    """Everything but compilation."""
    return time.perf_counter() - self._start - self.compile_seconds
