"""All methods by the name that `--algorithm.name` gives them, with the options
of each. Flags and help are made of this, so nothing here imports jax."""

from __future__ import annotations

import dataclasses
import difflib

from fedms_jax.shell.catalog import (
  black_box,
  elastic,
  general,
  lora,
  mixture,
  personal,
  pretraining,
  prompts,
  split,
  transfer,
)
from fedms_jax.shell.catalog.entry import Method
from fedms_jax.shell.fields import section

METHODS: dict[str, Method] = {
  **mixture.METHODS,
  **lora.METHODS,
  **general.METHODS,
  **personal.METHODS,
  **prompts.METHODS,
  **elastic.METHODS,
  **split.METHODS,
  **transfer.METHODS,
  **pretraining.METHODS,
  **black_box.METHODS,
}

# The options of all methods, a section for each that has any.
Options = dataclasses.make_dataclass(
  'Options',
  [
    (name, method.options, section(method.options))
    for name, method in METHODS.items()
    if method.options
  ],
  frozen=True,
)


def find(name: str) -> Method:
  """The method of this name.

  Raises:
    ValueError: there is none.
  """
  if name not in METHODS:
    close = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)
    raise ValueError(
      f'--algorithm.name={name!r} is no algorithm. Did you mean {close[0]!r}? '
      f'Algorithms: {", ".join(METHODS)}.'
    )
  return METHODS[name]
