"""All methods by the name that `--algorithm.name` gives them, with the options
of each. Flags and help are made of this, so nothing here imports jax."""

from __future__ import annotations

import dataclasses
import difflib

from fedms_jax.shell import plugins
from fedms_jax.shell.catalog import (
  analytic,
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
from fedms_jax.shell.fields import Growing, section

FAMILIES: dict[str, dict[str, Method]] = {
  'mixture': mixture.METHODS,
  'lora': lora.METHODS,
  'general': general.METHODS,
  'personal': personal.METHODS,
  'prompts': prompts.METHODS,
  'elastic': elastic.METHODS,
  'split': split.METHODS,
  'transfer': transfer.METHODS,
  'pretraining': pretraining.METHODS,
  'analytic': analytic.METHODS,
  'black_box': black_box.METHODS,
}
METHODS: dict[str, Method] = {
  name: method
  for methods in FAMILIES.values()
  for name, method in methods.items()
}

PLUGINS: dict[str, Method] = {}  # of plugins, as they are found


def _options() -> type:
  """A dataclass with a section for each method that has options."""
  return dataclasses.make_dataclass(
    'Options',
    [
      (name, method.options, section(method.options))
      for name, method in (METHODS | PLUGINS).items()
      if method.options
    ],
    frozen=True,
  )


# The options of all methods, of which plugins may add some.
Options = Growing(_options())


def find(name: str) -> Method:
  """The method of this name.

  Raises:
    ValueError: there is none.
  """
  if not known(name):
    close = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)
    raise ValueError(
      f'--algorithm.name={name!r} is no algorithm. Did you mean {close[0]!r}? '
      f'Algorithms: {", ".join(METHODS)}{plugins.said("algorithms")}.'
    )
  return METHODS.get(name) or PLUGINS[name]


def families() -> dict[str, str]:
  """The family of each method."""
  return {n: family for family, methods in FAMILIES.items() for n in methods}


def known(name: str) -> bool:
  """Whether there is such a method; one of a plugin is loaded, and its options
  are there from then on.

  Raises:
    ValueError: what the plugin calls so is no method, or takes another's name.
  """
  if name in METHODS or not name:
    return bool(name)
  method = plugins.find('algorithms', name)
  if method is None:
    return False
  if not (isinstance(method, Method) and callable(method.stages)):
    raise ValueError(
      f'the plugin {name!r} of algorithms is {type(method).__name__}; allowed: '
      'a `Method` with `stages`.'
    )
  if PLUGINS.get(name) is not method:
    PLUGINS[name] = method
    Options.type = _options()
  return True
