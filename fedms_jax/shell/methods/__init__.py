"""How methods are built from flags, a family a file; `shell/catalog` says what
they are and which options they have."""

from __future__ import annotations

from collections.abc import Callable

from fedms_jax.core.types import Tree
from fedms_jax.models.family import Model
from fedms_jax.shell import catalog
from fedms_jax.shell.config import Config
from fedms_jax.shell.methods import general, lora, mixture, personal, prompts
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage

# By the names of the catalog.
STAGES: dict[str, Callable[[Builder], list[Stage]]] = {
  **mixture.STAGES,
  **lora.STAGES,
  **general.STAGES,
  **personal.STAGES,
  **prompts.STAGES,
}


def stages(
  config: Config, model: Model, classes: int, adapter: Tree | None = None
) -> list[Stage]:
  """The stages of the method that the config names, with their schedules.

  Raises:
    ValueError: there is no such method, or it does not fit model and data.
  """
  name = config.algorithm.name
  catalog.find(name)
  return STAGES[name](Builder(config, model, classes, adapter))


def reads_names(name: str, model: Model) -> bool:
  """Whether the method needs the text tower, for prompts of class names."""
  return bool(model.prompted) and catalog.find(name).text
