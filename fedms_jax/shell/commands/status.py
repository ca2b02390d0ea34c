"""`fedms status`: how the run of a workdir stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedms_jax.persistence import status
from fedms_jax.shell import arguments, flags


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Prints the status; nothing is written."""
  config, _ = flags.parse_for_workdir(words, extra)
  found = status.text(config.workdir, status.read(config.workdir))
  print(arguments.in_flags(found))
  return 0
