"""Rows of the public set that a server reads in its step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation
from fedms_jax.data import draws, lazy
from fedms_jax.simulation.state import Stage, StageState


def check(stages: Sequence[Stage], federation: Federation) -> None:
  """Raises `ValueError` if a server wants public rows and there are none."""
  if len(federation.public):
    return
  for stage in stages:
    if stage.algorithm.public:
      raise ValueError(
        f'the server of {stage.algorithm.name} learns from public rows, of '
        'which there are none; allowed: `public_fraction` above 0, or '
        '`public_classes`. Set one of them.'
      )


def draw(simulation, state: StageState):
  """Those that the server reads in the next round, a raw batch; None: none."""
  size = simulation.stages[state.stage].algorithm.public
  data = simulation.federation
  if not size:
    return None
  generator = draws.generator(
    simulation.options.seed, Stream.PROXY, state.stage, state.round
  )
  again = size > len(data.public)
  chosen = data.public[generator.choice(len(data.public), size, replace=again)]
  batch = lazy.take(data.table.columns, chosen)
  return simulation.place.whole(batch | {'mask': np.ones(size, bool)})
