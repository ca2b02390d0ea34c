"""What the runs of one process share: data, model, pre-training, programs.

Methods of the catalog are interned, so that runs of one model that differ in
schedule or seed alone compile each round once.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

from fedms_jax.core.types import Roles, Tree
from fedms_jax.models.family import Model
from fedms_jax.persistence import run_store
from fedms_jax.shell import catalog, foundation
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import world as worlds
from fedms_jax.shell.config import Config
from fedms_jax.simulation import observer

# Flags that neither data nor model depend on; names that end in a dot stand
# for a section. A flag that is not listed here is never shared over.
_HOW = (
  'workdir', 'resume', 'break_lock', 'progress', 'log_seconds', 'log_rounds',
  'loggers', 'tensorboard', 'checkpoint.',
  'distributed.', 'engine.', 'columns.', 'eval.', 'schedule.',
)  # fmt: skip
_TRAINING = (
  'algorithm.', 'client.', 'server.', 'gate.', 'prompt.', 'cohort.',
  'pretrain.', 'privacy.', 'time.', 'select.', 'on_nan',
  *(f'{name}.' for name in catalog.METHODS),
  *(f'tasks.{name}' for name in (
    'method', 'memory', 'choice', 'weight', 'decay', 'share', 'temperature',
    'head')),
)  # fmt: skip
# What rows depend on, but no model.
_ROWS = ('seed', 'attack.', 'data.shift', 'data.concept_groups',
         'data.public_shift', 'partition.name', 'partition.alpha')  # fmt: skip
# What the server's pre-training depends on.
_PRETRAINING = ('data.', 'partition.', 'model.', 'pretrain.', 'lora.init',
                'tasks.name', 'tasks.count', 'tasks.column',
                'seed')  # fmt: skip


class SharedRuns:
  """Stands for the module `shell.world` in `shell.run.run`.

  Holds the data of one seed at a time; what the server trained lies in a
  folder, too, so that a benchmark that was killed need not train it again.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._key: str | None = None  # of the data
    self._like: worlds.World | None = None
    self._models: dict[str, Model] = {}
    self._initial: dict[str, Roles] = {}
    self._pretrained: dict[str, dict[str, Tree]] = {}

  def world(self, config: Config) -> worlds.World:
    """As `world.world`."""
    key = _digest(config, leave_out=_HOW + _TRAINING)
    if key != self._key:
      self._like, self._initial, self._pretrained = None, {}, {}
      like = worlds.world(config)
      facts = json.dumps(foundation.facts(like.data))
      model = _digest(config, leave_out=(*_HOW, *_TRAINING, *_ROWS)) + facts
      model = self._models.setdefault(model, like.model)
      self._key, self._like = key, like._replace(model=model)
    return worlds.world(config, self._like)

  def initial(self, config: Config, world: worlds.World) -> Roles:
    """As `world.initial`."""
    # Methods that learn prompts have the text tower in their model.
    text = catalog.METHODS[config.algorithm.name].text
    key = _digest(config, only=('prompt.',)) if text else ''
    if key not in self._initial:
      self._initial[key] = worlds.initial(config, world)
    return self._initial[key]

  def pretrained(
    self, config: Config, world: worlds.World, before: Roles, watch, after=None
  ) -> dict[str, Tree]:
    """As `world.pretrained`."""
    key = _digest(config, only=_PRETRAINING)
    if key not in self._pretrained:
      self._pretrained[key] = run_store.kept(
        self._folder / f'seed={config.seed}-{key[:12]}',
        worlds.pretrained_shapes(config, world),
        lambda: worlds.pretrained(config, world, before, watch, after),
      )
    return self._pretrained[key]

  def prepare(self, config: Config) -> None:
    """Makes ready what a run shares with others, so that its seconds are its
    own."""
    world = self.world(config)
    before = self.initial(config, world)
    self.pretrained(config, world, before, observer.Silent())


def _digest(config: Config, leave_out: tuple = (), only: tuple = ('',)) -> str:
  values: dict[str, Any] = {
    name: value
    for name, value in config_lib.values(config).items()
    if name.startswith(only) and not name.startswith(leave_out)
  }
  text = json.dumps(values, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
