"""What does not go with a choice: the refusal of flags beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def refuse(said: str, problems: Mapping[str, Any]) -> None:
  """Raises `ValueError` for the first flag that does not go with what is said.

  said: the choice, as a flag with its value. problems: why it does not go with
  it, by flag with its value; nothing that is true: it does.
  """
  for flag, why in problems.items():
    if why:
      raise ValueError(f'{flag} does not go with {said}: {why}. Leave it out.')
