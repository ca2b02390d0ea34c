"""What the catalog says of a method, before anything is imported for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Method(NamedTuple):
  """An entry of the catalog.

  summary: one line. paper: where it is from. options: what a run can tell it,
  a frozen dataclass whose fields become flags named `method.field`; None: there
  is nothing. text: of a model with class prompts it needs the text tower, too.
  ours: what its paper does not say, or says otherwise; '': nothing we know of.
  stages: of a plugin, what builds it: `Builder` -> its stages; those of the
  project are in `shell/methods`.
  """

  summary: str
  paper: str
  options: type | None = None
  text: bool = False
  ours: str = ''
  stages: Callable[[Any], Any] | None = None
