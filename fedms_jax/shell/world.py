"""What a run starts from: data, model, and what its server made of them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import fedms, full, probe
from fedms_jax.core import compile, seeds
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation, Roles, Tree
from fedms_jax.data import lazy, quality
from fedms_jax.data.federation import by_client
from fedms_jax.data.poison import Poisoned
from fedms_jax.models.family import Model
from fedms_jax.persistence import peft, peft_names
from fedms_jax.persistence.model_files import Checkpoint
from fedms_jax.server import averaged, optimizers
from fedms_jax.shell import (
  attacks,
  build,
  dealing,
  foundation,
  methods,
  pipeline,
  sizes,
  task_rules,
  tasks,
  timing,
  watched,
)
from fedms_jax.shell.config import (
  Config,
  LoraConfig,
  ModelConfig,
  PretrainConfig,
)
from fedms_jax.shell.config.model import LINEAR
from fedms_jax.shell.watched import Watched
from fedms_jax.simulation import pretraining
from fedms_jax.simulation.state import Stage

# Heads that learn the classes of rows.
CLASSIFIED = ('classification', 'zero_shot')


class World(NamedTuple):
  """What a config describes, before anything is computed.

  checkpoint: where the model is loaded from; None: the built-in one. data:
  sorted by client; of several processes each reads of it what it needs, when
  it does. model: of the algorithm. first: of the first stage, the same unless
  --stages begins with something else. stages: of the run. head: that came with
  the adapter of --lora.init, or None. watched: metrics, and what of them ends a
  stage. poison: rows of malicious clients, at the end of the table; None: there
  are none.
  """

  checkpoint: Checkpoint | None
  data: Federation
  model: Model
  first: Model
  stages: list[Stage]
  head: Tree | None
  watched: Watched
  poison: Poisoned | None = None


def world(config: Config, like: World | None = None) -> World:
  """Finds, reads and checks everything that a run needs.

  like: the world of a config with the same data and model, to share them.
  """
  task_rules.check(config)
  if like is None:
    sizes.check_flags(config.data, config.model, config.client)
    checkpoint = foundation.checkpoint(config, lambda: _public(config))
    data = by_client(_federation(config, checkpoint))
    if jax.process_count() == 1:
      sizes.check_table(data.table)
      data = data._replace(
        table=data.table._replace(columns=lazy.whole(data.table.columns))
      )
    data = tasks.dealt(config, data)
    quality.check(data, foundation.objective(config.first_model))
    poison = attacks.poisoned(config, data)
    data = data if poison is None else poison.data
    model = foundation.model(config.model, data, checkpoint, config.data)
    first = model
    if config.first_model != config.model:
      first = foundation.model(
        config.first_model, data, checkpoint, config.data
      )
    sizes.check_steps(
      config.client, config.pretrain, config.model, model.backbone
    )
  else:
    checkpoint, data, model = like.checkpoint, like.data, like.model
    first, poison = like.first, like.poison
  classes = len(data.table.output_names)
  adapter, head = _adapter(
    config.lora, checkpoint, model, data.table.output_names
  )
  stages = pipeline.stages(config, first, model, classes, adapter)
  stages = tasks.stages(config, stages, data)
  stages = attacks.viewed(config, stages, poison)
  stages = timing.timed(config, data, stages)
  kinds = [stage.algorithm.task for stage in stages]
  found = watched.watched(config, kinds, data.table)
  return World(checkpoint, data, model, first, stages, head, found, poison)


def data(config: Config) -> Federation:
  """The data of a run alone."""
  bare = dataclasses.replace(config, workdir='')
  checkpoint = foundation.checkpoint(bare, lambda: _public(bare))
  return by_client(_federation(bare, checkpoint))


def _federation(config: Config, checkpoint: Checkpoint | None) -> Federation:
  """The data, as the model reads it."""
  reading = foundation.reading(
    config.first_model, config.data, checkpoint, seed=config.seed
  )
  head = config.model.head  # what the phases of --stages do not look at, too
  if checkpoint is not None and head in (*LINEAR, 'zero_shot'):
    reading |= {'need_labels': True}
  if head in foundation.ANSWERS:
    reading |= {'answer': foundation.ANSWERS[head]}
  if config.tasks.column:
    reading |= {'domain_column': config.tasks.column}
  if config.first_model.head == 'masked_lm' != config.model.head:
    _check_masks(config)
  if config.data.concept_groups and head not in CLASSIFIED:
    raise ValueError(
      f'--data.concept_groups={config.data.concept_groups} permutes classes, '
      f'of which --model.head={head} learns nothing; allowed: '
      f'{", ".join(CLASSIFIED)}. Leave it out.'
    )
  return dealing.federation(
    config.data,
    config.partition,
    seed=config.seed,
    progress=config.progress,
    reading=reading,
    marked=config.model.scratch and config.model.tokenizer == 'bpe',
  )


def _check_masks(config: Config) -> None:
  """Raises `ValueError` if texts would be read with holes in them."""
  if config.data.masks == 'once':
    raise ValueError(
      f'--data.masks=once hides tokens for the whole run, from '
      f'{config.algorithm.name} in --stages={config.stages}, too, which is to '
      'read whole texts. Use --data.masks=fresh.'
    )


def _public(config: Config) -> list[str]:
  """The texts that a new tokenizer is trained on: the public ones."""
  if config.partition.load:
    raise ValueError(
      f'--model.tokenizer=bpe is trained on public texts, and --partition.load='
      f'{config.partition.load} is read after it. Use bytes.'
    )
  # Read as bytes until there is something else.
  plain = dataclasses.replace(config.model, tokenizer='bytes', vocabulary=1024)
  bare = dataclasses.replace(config, model=plain, workdir='')
  checkpoint = foundation.checkpoint(bare, list)
  reading = foundation.reading(
    bare.first_model, bare.data, checkpoint, seed=config.seed
  )
  return dealing.public_texts(bare.data, seed=config.seed, reading=reading)


def _adapter(
  c: LoraConfig,
  checkpoint: Checkpoint | None,
  model: Model,
  labels: tuple[str, ...],
) -> tuple[Tree | None, Tree | None]:
  """(LoRA, head) that the run starts from; None is fresh. labels: the names of
  the classes."""
  backbone, key = model.backbone, jax.random.key(0)
  if not c.init:
    return None, None
  if checkpoint is None:
    raise ValueError(
      f'--lora.init={c.init} is for checkpoints; --model.name=vit is built '
      'in. Leave it out.'
    )
  base = jax.eval_shape(backbone.init, key)
  spec = build.lora_spec(c)
  fresh = spec.init(key, base['blocks'])
  blocks, head = peft.load(
    c.init,
    model,
    fresh,
    scale=spec.scale,
    labels=labels,
    frozen=peft_names.frozen_beside(model, checkpoint),
  )
  return jax.tree.map(jnp.asarray, (blocks, head))


def shapes(
  m: ModelConfig,
  model: Model,
  checkpoint: Checkpoint | None,
  tokens: Tree | None = None,
) -> Roles:
  """The shapes of `initial`, without data or weights. tokens: see
  `foundation.text_tower_shapes`; None: the method reads no names, as any of
  the built-in model."""

  def start(key):
    backbone = model.backbone
    return fedms.start(backbone.init(key), backbone.init_head(key))

  roles = jax.eval_shape(start, jax.random.key(0))
  if tokens is None:
    return roles
  assert checkpoint is not None
  text = foundation.text_tower_shapes(m, tokens, checkpoint)
  base = roles.frozen['base'] | {'text': text}
  return roles._replace(frozen=roles.frozen | {'base': base})


def initial(config: Config, world: World) -> Roles:
  """The model before this run has trained anything: random, or as loaded."""
  key = seeds.stream(config.seed, Stream.INIT)
  if world.checkpoint is not None:
    names = world.data.table.output_names
    m = config.first_model
    if m.scratch:
      return _random(world.first, key)
    base, head = foundation.load(
      m, config.data, world.first, names, world.checkpoint, key
    )
    if methods.reads_names(config.algorithm.name, world.model):
      text = foundation.text_tower(m, config.prompt, names, world.checkpoint)
      base = base | {'text': text}
    return fedms.start(base, world.head or head)
  return _random(world.first, key)


def _random(made: Model, key) -> Roles:
  """The model with random weights."""

  @compile.jit(light=True)  # one compilation, not one per operation
  def init(key):
    base, head = jax.random.split(key)
    model = made.backbone
    return fedms.start(model.init(base), model.init_head(head))

  return init(key)


def pretrain_mode(
  p: PretrainConfig, m: ModelConfig, headed: bool = False
) -> str:
  """What the server trains: 'full', 'probe' or 'none'. headed: the head came
  with an adapter."""
  mode = p.mode
  if m.own and mode not in ('auto', 'none'):
    raise ValueError(
      f'--pretrain.mode={mode} does not go with --model.name={m.name}, a '
      "network of one's own, which begins as it is made; allowed: none. Leave "
      'it out.'
    )
  if mode != 'auto':
    if mode == 'full' and m.storage != 'float32':
      raise ValueError(
        f'--pretrain.mode=full does not go with --model.storage={m.storage}: '
        'trained weights are float32. Change one of them.'
      )
    if mode == 'probe' and m.head not in LINEAR:
      raise ValueError(
        f'--pretrain.mode=probe trains a linear head, which --model.head='
        f'{m.head} has not; allowed: full, none.'
      )
    return mode
  if m.new:
    return 'full'
  if m.own:
    return 'none'
  new = m.head in LINEAR and not m.keep_head and not headed
  return 'probe' if new else 'none'


def ahead(config: Config, headed: bool = False) -> str:
  """What the server trains before the first stage, see `pretrain_mode`."""
  if config.stages:  # which say themselves what it trains
    return 'none'
  return pretrain_mode(config.pretrain, config.model, headed)


def pretrained_shapes(config: Config, world: World) -> dict[str, Tree]:
  """Shapes of what `pretrained` gives: {'base', 'head'}, or the head alone."""
  model, key = world.first.backbone, jax.random.key(0)
  head = {'head': jax.eval_shape(model.init_head, key)}
  if ahead(config, bool(world.head)) != 'full':
    return head
  return head | {'base': jax.eval_shape(model.init, key)}


def pretrained(
  config: Config, world: World, before: Roles, observer, after=None
) -> dict[str, Tree]:
  """What the server's pre-training makes of the model `before` it. after: see
  `pretraining.train`."""
  p, m = config.pretrain, config.model
  mode = ahead(config, bool(world.head))
  model, data = world.model.backbone, world.data
  if mode == 'none':
    return {'head': before.frozen['head']}
  per_epoch = pretraining.steps_per_epoch(len(data.public), p.batch_size)
  optimizer = optimizers.pretraining(
    p.learning_rate, p.weight_decay, p.epochs * per_epoch
  )
  setting = fedms.Setting(  # of one client, which has all rows
    model=model,
    task=foundation.task(m, world.model),
    optimizer=optimizer,
    outer=optax.sgd(1.0),
    aggregator=averaged.mean(),
    lora=build.lora_spec(config.lora),
  )
  method = full.full_model if mode == 'full' else probe.linear_probe
  shared = pretraining.train(
    method(setting),
    data,
    before,
    model.blocks,
    epochs=p.epochs,
    batch_size=p.batch_size,
    seed=config.seed,
    observer=observer,
    after=after,
  )
  if mode == 'probe':
    return shared
  return {'head': shared.pop('head'), 'base': shared}
