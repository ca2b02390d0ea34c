"""What a run starts from: data, model, and what its server made of them."""

from __future__ import annotations

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
from fedms_jax.models.family import Model
from fedms_jax.persistence import peft, peft_names
from fedms_jax.persistence.model_files import Checkpoint
from fedms_jax.server import averaged, optimizers
from fedms_jax.shell import build, foundation, methods, sizes, watched
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


class World(NamedTuple):
  """What a config describes, before anything is computed.

  checkpoint: where the model is loaded from; None: the built-in one. data:
  sorted by client; of several processes each reads of it what it needs, when
  it does. stages: of the algorithm. head: that came with the adapter
  of --lora.init, or None. watched: metrics, and what of them ends a stage.
  """

  checkpoint: Checkpoint | None
  data: Federation
  model: Model
  stages: list[Stage]
  head: Tree | None
  watched: Watched


def world(config: Config, like: World | None = None) -> World:
  """Finds, reads and checks everything that a run needs.

  like: the world of a config with the same data and model, to share them.
  """
  if like is None:
    sizes.check_flags(config.data, config.model, config.client)
    checkpoint = foundation.find(config.model)
    data = by_client(_federation(config, checkpoint))
    if jax.process_count() == 1:
      sizes.check_table(data.table)
      data = data._replace(
        table=data.table._replace(columns=lazy.whole(data.table.columns))
      )
    quality.check(data, foundation.objective(config.model))
    model = foundation.model(config.model, data, checkpoint)
    sizes.check_steps(
      config.client, config.pretrain, config.model, model.backbone
    )
  else:
    checkpoint, data, model = like.checkpoint, like.data, like.model
  classes = len(data.table.output_names)
  adapter, head = _adapter(
    config.lora, checkpoint, model, data.table.output_names
  )
  stages = methods.stages(config, model, classes, adapter)
  found = watched.watched(config, stages[-1].algorithm.task, data.table)
  return World(checkpoint, data, model, stages, head, found)


def data(config: Config) -> Federation:
  """The data of a run alone."""
  return by_client(_federation(config, foundation.find(config.model)))


def _federation(config: Config, checkpoint: Checkpoint | None) -> Federation:
  """The data, as the model reads it."""
  reading = foundation.reading(
    config.model, config.data, checkpoint, seed=config.seed
  )
  return build.federation(
    config.data,
    config.partition,
    seed=config.seed,
    progress=config.progress,
    reading=reading,
  )


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
  checkpoint: Checkpoint,
  tokens: Tree | None = None,
) -> Roles:
  """The shapes of `initial`, without data or weights. tokens: see
  `foundation.text_tower_shapes`; None: the method reads no names."""

  def start(key):
    backbone = model.backbone
    return fedms.start(backbone.init(key), backbone.init_head(key))

  roles = jax.eval_shape(start, jax.random.key(0))
  if tokens is None:
    return roles
  text = foundation.text_tower_shapes(m, tokens, checkpoint)
  base = roles.frozen['base'] | {'text': text}
  return roles._replace(frozen=roles.frozen | {'base': base})


def initial(config: Config, world: World) -> Roles:
  """The model before this run has trained anything: random, or as loaded."""
  key = seeds.stream(config.seed, Stream.INIT)
  if world.checkpoint is not None:
    names = world.data.table.output_names
    m = config.model
    base, head = foundation.load(
      m, config.data, world.model, names, world.checkpoint, key
    )
    if methods.reads_names(config.algorithm.name, world.model):
      text = foundation.text_tower(m, config.prompt, names, world.checkpoint)
      base = base | {'text': text}
    return fedms.start(base, world.head or head)

  @compile.jit(light=True)  # one compilation, not one per operation
  def init(key):
    base, head = jax.random.split(key)
    model = world.model.backbone
    return fedms.start(model.init(base), model.init_head(head))

  return init(key)


def pretrain_mode(
  p: PretrainConfig, m: ModelConfig, headed: bool = False
) -> str:
  """What the server trains: 'full', 'probe' or 'none'. headed: the head came
  with an adapter."""
  mode = p.mode
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
  if m.built_in:
    return 'full'
  new = m.head in LINEAR and not m.keep_head and not headed
  return 'probe' if new else 'none'


def pretrained_shapes(config: Config, world: World) -> dict[str, Tree]:
  """Shapes of what `pretrained` gives: {'base', 'head'}, or the head alone."""
  model, key = world.model.backbone, jax.random.key(0)
  head = {'head': jax.eval_shape(model.init_head, key)}
  mode = pretrain_mode(config.pretrain, config.model, bool(world.head))
  if mode != 'full':
    return head
  return head | {'base': jax.eval_shape(model.init, key)}


def pretrained(
  config: Config, world: World, before: Roles, observer
) -> dict[str, Tree]:
  """What the server's pre-training makes of the model `before` it."""
  p, m = config.pretrain, config.model
  mode = pretrain_mode(p, m, bool(world.head))
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
  )
  if mode == 'probe':
    return shared
  return {'head': shared.pop('head'), 'base': shared}
