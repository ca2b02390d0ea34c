"""What a run ends with, for who called it from Python."""

from __future__ import annotations

from typing import Any, NamedTuple

from fedms_jax.shell.config import Config


class Finished(NamedTuple):
  """A run that has come to its end.

  world, simulation, state: as `shell.run` has them. summary: as in
  summary.json. columns: as in per_client.csv. recorder: has the records of all
  rounds.
  """

  config: Config
  world: Any
  simulation: Any
  state: Any
  summary: dict[str, Any]
  columns: dict[str, Any]
  recorder: Any
