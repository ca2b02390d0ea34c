"""What a method of the catalog is built from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from fedms_jax.algorithms import fedms, networks
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.ranks import RankOf
from fedms_jax.core import private_gradient
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Backbone, Tree
from fedms_jax.models.family import Model
from fedms_jax.schedules import Schedule
from fedms_jax.server import averaged
from fedms_jax.shell import aggregators, build, foundation, tasks
from fedms_jax.shell.config import Config, beside
from fedms_jax.shell.config.privacy import EXAMPLE
from fedms_jax.shell.config.time import MIX
from fedms_jax.simulation.state import Handover, Stage


class Builder(NamedTuple):
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
  def own(self) -> Any:
    """The options of the method that is built, of the type that its entry in
    the catalog names."""
    return getattr(self.config.methods, self.config.algorithm.name)

  @property
  def rounds(self) -> int:
    """Of a method of one stage: as many as FedMS has in both."""
    a = self.config.algorithm
    return a.stage1_rounds + a.stage2_rounds

  @property
  def horizon(self) -> int:
    """Local steps of the method in all, by the flags."""
    return self.rounds * self.config.client.steps

  def check_float32(self, why: str) -> None:
    """Raises `ValueError` for weights that cannot be trained."""
    storage = self.config.model.storage
    if storage != 'float32':
      raise ValueError(
        f'--algorithm.name={self.config.algorithm.name} {why}, not those of '
        f'--model.storage={storage}; allowed: float32. Change one of them.'
      )

  def check_public(self, does: str) -> None:
    """Raises `ValueError` if there are no public rows, on which the method
    does so."""
    data, name = self.config.data, self.config.algorithm.name
    if not (data.public_fraction or data.public_classes):
      raise ValueError(
        f'--data.public_fraction={data.public_fraction:g} leaves no public '
        f'rows, on which --algorithm.name={name} {does}; allowed: above 0. '
        'Raise it, or set --data.public_classes.'
      )

  def setting(
    self,
    *,
    ranks: bool = False,
    merges: bool = False,
    exact: bool = False,
    state: bool = False,
  ) -> Setting:
    """Optimizers, aggregator and LoRA as the flags say; LoRA is checked.
    Raises `ValueError` for flags that the method has no use for. ranks: it
    takes mixed ranks. merges: it has an aggregator of its own. exact: what
    that gives is what the model must be, so that no server optimizer fits.
    state: its clients' optimizers may outlive a round.
    """
    s, l, kept = self.config.server, self.config.lora, self.config.client.state
    usual = s.optimizer == 'mean' and s.learning_rate == 1.0
    problems = {
      f'--client.state={kept}': (
        kept != 'reset' and not state,
        'its clients train other parts in each round; allowed: reset',
      ),
      f'--lora.ranks={l.ranks}': (
        l.ranks and not ranks,
        'all of its clients have --lora.rank',
      ),
      **(self._merging() if merges else {}),
      f'--server.optimizer={s.optimizer} and --server.learning_rate='
      f'{s.learning_rate:g}': (
        exact and not usual,
        'its server sets what the messages give; allowed: mean and 1',
      ),
    }
    self._refuse(problems)
    base = jax.eval_shape(self.backbone.init, jax.random.key(0))
    if 'blocks' in base:
      build.lora_spec(l).check(base['blocks'])
    setting = build.setting(
      self.backbone,
      foundation.task(self.config.model, self.model),
      self.config.client,
      s,
      self.config.gate,
      l,
      aggregators.aggregator(self.config),
      self.horizon,
    )
    return tasks.setting(self.config, _private(setting, self.config))

  def _merging(self):
    """Problems of `setting` for a method with an aggregator of its own."""
    s, policy = self.config.server, self.config.time.policy
    why = 'its own aggregator is what it is'
    return {
      f'--server.aggregator={s.aggregator}': (s.aggregator != 'mean', why),
      f'--time.policy={policy}': (policy == MIX, f'{why}; allowed: fedbuff'),
    }

  def shared_model(self, setting: Setting) -> Algorithm:
    """FedAvg of what trains of the model: LoRA and head, or a network of one's
    own. Methods of plugins begin from it."""
    if self.model.network is not None:
      return networks.fedavg(setting, self.model.network)
    return fedms.global_stage(setting, adapter=self.adapter)

  def rank_of(self) -> RankOf | None:
    """The rank of each client: a pure, even draw from --lora.ranks; None if
    they are not mixed."""
    found = self.config.lora.mixed
    if not found:
      return None
    seed = self.config.seed

    def draw(client: int) -> int:
      rng = np.random.default_rng([seed, Stream.RANKS.number, client])
      return found[int(rng.integers(len(found)))]

    return draw

  def stage(
    self,
    name: str,
    algorithm: Algorithm,
    rounds: int,
    start: str = 'restart',
    probe: Algorithm | None = None,
    ends: str = 'rounds',
  ) -> Stage:
    """A stage under the schedule of the flags; see `build.schedule`."""
    make = build.schedule(
      self.config.schedule, self.backbone.blocks, rounds, start, ends
    )

    def schedule(handover: Handover) -> Schedule:
      return make(handover, self.config.seed)

    return Stage(name, algorithm, rounds, schedule, probe)

  def alone(
    self,
    name: str,
    setting: Setting,
    make: Callable[[Setting], Algorithm],
    start: str = 'restart',
  ) -> list[Stage]:
    """The one stage of a method. The importance of blocks is measured by a
    plain step of it: no variants, no merging of its own."""
    plain = make(setting._replace(optimizer=optax.sgd(1.0)))
    server = averaged.meaning(plain.server)
    probe = plain._replace(server=server, variant=None)
    return [self.stage(name, make(setting), self.rounds, start, probe)]

  def _refuse(self, problems: dict[str, tuple[Any, str]]) -> None:
    """Raises `ValueError` for the first flag that is wrong. problems: (whether
    it is, why) by flag."""
    beside.refuse(
      f'--algorithm.name={self.config.algorithm.name}',
      {flag: wrong and why for flag, (wrong, why) in problems.items()},
    )


def _private(setting: Setting, config: Config) -> Setting:
  """What privacy makes of a setting; the same without."""
  p = config.privacy
  # A private run sends nothing that only a metric is made of; in a secure sum
  # it would have no range.
  setting = setting._replace(residual=not (p.on or config.secagg.on))
  if p.mode != EXAMPLE:
    return setting
  gradient = private_gradient.private_gradient(
    p.clip, p.noise, config.client.batch_size
  )
  return setting._replace(gradient=gradient)
