"""All methods by the name that `--algorithm.name` gives them."""

from __future__ import annotations

import difflib

from fedms_jax.core.types import Tree
from fedms_jax.models.family import Model
from fedms_jax.shell.config import Config
from fedms_jax.shell.methods import general, lora, mixture, personal, prompts
from fedms_jax.shell.methods.builder import Builder, Method
from fedms_jax.simulation.state import Stage

METHODS: dict[str, Method] = {
  **mixture.METHODS,
  **lora.METHODS,
  **general.METHODS,
  **personal.METHODS,
  **prompts.METHODS,
}


def method(config: Config) -> Method:
  """The method that the config names.

  Raises:
    ValueError: there is none of this name.
  """
  name = config.algorithm.name
  if name not in METHODS:
    close = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)
    raise ValueError(
      f'--algorithm.name={name!r} is no algorithm. Did you mean {close[0]!r}? '
      f'Algorithms: {", ".join(METHODS)}.'
    )
  return METHODS[name]


def stages(
  config: Config, model: Model, classes: int, adapter: Tree | None = None
) -> list[Stage]:
  """The stages of the method that the config names, with their schedules.

  Raises:
    ValueError: there is no such method, or it does not fit model and data.
  """
  return method(config).stages(Builder(config, model, classes, adapter))


def reads_names(config: Config, model: Model) -> bool:
  """Whether the method needs the text tower, for prompts of class names."""
  return bool(model.prompted) and method(config).text
