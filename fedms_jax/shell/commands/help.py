"""`fedms help`: what there is, or a page on one thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedms_jax.shell import commands, manual


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Prints the page.

  Raises:
    ValueError: there is no such page.
  """
  del extra
  asked = [w for w in words if w not in ('-h', '--help')]
  topic, rest = commands.topic(asked)
  if rest[1:]:
    raise ValueError(f'{rest[1]} says nothing of a page. Leave it out.')
  print(manual.page(topic) if topic else manual.overview())
  return 0
