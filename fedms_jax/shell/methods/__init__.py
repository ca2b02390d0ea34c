"""How methods are built from flags, a family a file; `shell/catalog` says what
they are and which options they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable

from fedms_jax.core.types import Tree
from fedms_jax.models.family import Model
from fedms_jax.shell import catalog, plugins, tasks, wire
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.privacy import EXAMPLE
from fedms_jax.shell.config.time import MIX
from fedms_jax.shell.methods import (
  analytic,
  black_box,
  elastic,
  general,
  head_start,
  lora,
  mixture,
  networks,
  personal,
  pretraining,
  prompts,
  split,
  transfer,
)
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage

_MOST = 128  # interned methods
_interned: dict[tuple[Hashable, ...], tuple[list[Stage], Tree]] = {}

# By the names of the catalog.
STAGES: dict[str, Callable[[Builder], list[Stage]]] = {
  **mixture.STAGES,
  **lora.STAGES,
  **general.STAGES,
  **personal.STAGES,
  **prompts.STAGES,
  **elastic.STAGES,
  **split.STAGES,
  **transfer.STAGES,
  **pretraining.STAGES,
  **analytic.STAGES,
  **black_box.STAGES,
}

# Methods that start from the LoRA of --lora.init, beside those that do with
# --<method>.trains=lora; the others have none, or make their own.
FROM_LORA = frozenset(
  'fedms fedit ffa_lora rolora fedsa_lora flora fedex_lora flexlora hetlora '
  'lora_fair fedprox scaffold fedfn local fedper fedrep ditto apfl pfedme '
  'feddpa pfedlora fedot fedpft fedv fedvz fedcaf fedkei femam koala'.split()
)


def stages(
  config: Config, model: Model, classes: int, adapter: Tree | None = None
) -> list[Stage]:
  """The stages of the method that the config names, with their schedules.

  Algorithms are interned: two calls that differ in seed, schedule, rounds,
  data or clients' learning rates alone get the same ones, so that they share
  compiled programs.

  Raises:
    ValueError: there is no such method, or it does not fit model and data.
  """
  builder = Builder(config, model, classes, adapter)
  _check_adapter(config)
  made = _maker(builder)(builder)
  if config.algorithm.head_start:
    made = head_start.added(builder, made)
  _check_hiding(config, made)
  key = (_identity(config), model.backbone, classes, id(adapter))
  key += (tuple(stage.name for stage in made), made_by(config))
  # With the adapter, whose id is another's when it is gone.
  kept, _ = _interned.setdefault(key, (made, adapter))
  if len(_interned) > _MOST:
    _interned.pop(next(iter(_interned)))
  found = [
    new._replace(algorithm=old.algorithm, probe=old.probe)
    for new, old in zip(made, kept, strict=True)
  ]
  return wire.wired(config, found)


def _maker(builder: Builder) -> Callable[[Builder], list[Stage]]:
  """What builds the method of a builder's config."""
  name = builder.config.algorithm.name
  method = catalog.find(name)
  if method.stages is not None:
    return method.stages
  if builder.model.network is None:
    return STAGES[name]
  if name not in networks.STAGES:
    raise ValueError(
      f'--algorithm.name={name} needs a model of blocks, which the network '
      f'--model.name={builder.config.model.name} has not; allowed: '
      f'{", ".join(networks.STAGES)}. Change one of them.'
    )
  return networks.STAGES[name]


def _check_adapter(config: Config) -> None:
  """Raises `ValueError` for an adapter that the method would not look at."""
  name, given = config.algorithm.name, config.lora.init
  if not given or catalog.find(name).stages is not None:
    return
  own = getattr(config.methods, name, None)
  if name not in FROM_LORA and getattr(own, 'trains', '') != 'lora':
    raise ValueError(
      f'--lora.init={given} does not go with --algorithm.name={name}, which '
      f'starts from no LoRA; allowed: {", ".join(sorted(FROM_LORA))}. Leave it '
      'out.'
    )


def made_by(config: Config) -> tuple[int, ...]:
  """Which values of plugins a config means, where a name has had several."""
  named = {
    'algorithms': config.algorithm.name,
    'aggregators': config.server.aggregator,
    'tasks': config.model.task,
  }
  return tuple(plugins.version(group, name) for group, name in named.items())


def _identity(config: Config) -> tuple[Hashable, ...]:
  """What of a config algorithms are made of."""
  c, name = config, config.algorithm.name
  population = c.partition.num_clients
  own = getattr(c.methods, name, None)  # some have no options of their own
  # Clients draw their ranks, or the depths or widths of their models.
  mixed = c.lora.mixed or ',' in getattr(own, 'depths', '') or name == 'raffm'
  seed = c.seed if mixed else None
  cosine = c.client.schedule == 'cosine'  # over as many rounds as there are
  return (name, own, _client(c), c.server, c.gate, c.lora, c.model, c.prompt,
          c.cohort, _steps_of(c), population, seed, c.data.masks,
          c.data.mask_fraction, c.algorithm if cosine else None,
          head_start.identity(c), _mixed(c), tasks.identity(c))  # fmt: skip


def _client(config: Config) -> tuple[Hashable, ...]:
  """What of a config's clients algorithms are made of: not the learning rates,
  which are inputs of each round, unless something else is made of them."""
  c = config.client
  bare = dataclasses.replace(c, learning_rate=1.0, personal_learning_rate=1.0)
  of_gate = 0.0 if config.gate.learning_rate else c.learning_rate
  added = catalog.find(config.algorithm.name).stages is not None
  return (bare, of_gate, c if added else None)


def _mixed(config: Config) -> tuple[Hashable, ...]:
  """What of a config's time is in its servers."""
  t = config.time
  if t.policy != MIX:
    return ()
  return (t.mixing, t.discount, t.power, t.grace)


def _steps_of(config: Config) -> tuple[Hashable, ...]:
  """What of a config's privacy is in the steps of clients."""
  p = config.privacy
  on = p.on or config.secagg.on
  return (on, p.clip, p.noise) if p.mode == EXAMPLE else (on,)


def _check_hiding(config: Config, made: list[Stage]) -> None:
  """Raises `ValueError` where something is hidden anew in each step, and a
  method computes ahead what depends on it."""
  if all(s.algorithm.task.hide is None for s in made):
    return
  if not any(s.algorithm.derived for s in made):
    return
  masks = '--data.masks=fresh'
  if config.model.head != 'masked_lm':
    masks = f'--model.head={config.model.head}'
  raise ValueError(
    f'{masks} does not go with --algorithm.name={config.algorithm.name}, which '
    'computes ahead what its frozen blocks make of a row; allowed: fedavg, '
    'fdapt, ffdapt, and F in --stages. Change one of them.'
  )


def reads_names(name: str, model: Model) -> bool:
  """Whether the method needs the text tower, for prompts of class names."""
  return bool(model.prompted) and catalog.find(name).text
