"""Seconds that went into compilation, as JAX itself reports them."""

from __future__ import annotations

import time

import jax

EVENTS = (
  '/jax/core/compile/jaxpr_trace_duration',
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)


class Clock:
  """Wall-clock seconds since its creation, and those spent compiling."""

  def __init__(self):
    self._start = time.perf_counter()
    self.compile_seconds = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._note)

  def _note(self, event: str, duration_secs: float, **unused) -> None:
    if event in EVENTS:
      self.compile_seconds += duration_secs

  @property
  def run_seconds(self) -> float:
    """Everything but compilation."""
    return time.perf_counter() - self._start - self.compile_seconds
