"""What a method of the catalog is built from, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedms_jax import build
from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms
from fedms_jax.base import Algorithm, Backbone, Tree
from fedms_jax.config import Config
from fedms_jax.models.family import Model
from fedms_jax.simulation.state import Stage


class Workbench(NamedTuple):
  """A run that is being built. classes: of the data. adapter: the stacked
  LoRA that the first stage starts from; None: fresh."""

  config: Config
  model: Model
  classes: int
  adapter: Tree | None = None

  @property
  def backbone(self) -> Backbone:
    return self.model.backbone

  @property
  def rounds(self) -> int:
    """Of a method of one stage: as many as FedMS has in both."""
    a = self.config.algorithm
    return a.stage1_rounds + a.stage2_rounds

  def setting(self) -> fedms.Setting:
    """Optimizers, aggregator and LoRA as the flags say; LoRA is checked."""
    base = jax.eval_shape(self.backbone.init, jax.random.key(0))
    targets = build.targets(self.config)
    lora.check(base['blocks'], targets, self.config.lora.rank)
    return build.setting(self.config, self.backbone)

  def stage(
    self,
    name: str,
    algorithm: Algorithm,
    rounds: int,
    start: str = 'restart',
    probe: Algorithm | None = None,
  ) -> Stage:
    """A stage under the schedule of the flags; see `build.schedule`."""
    schedule = build.schedule(self.config, self.backbone.blocks, rounds, start)
    return Stage(name, algorithm, rounds, schedule, probe)


class Method(NamedTuple):
  """An entry of the catalog. summary: one line. paper: where it is from.
  stages: builds it, or raises a `ValueError` that says what it needs."""

  summary: str
  paper: str
  stages: Callable[[Workbench], list[Stage]]
