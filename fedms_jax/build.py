"""The one place that knows everything: Config -> data, model, stages.

What a config asks for is checked here, against data and model, before
anything is compiled. Below this file there are no config objects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

from fedms_jax import (
  activation,
  aggregation,
  foundation,
  gate,
  optimizers,
  rng,
)
from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms, full, probe
from fedms_jax.base import Backbone, Federation, Roles, Tree
from fedms_jax.config import Config
from fedms_jax.data import federation as federations
from fedms_jax.data import sources, text

from fedms_jax.models.checkpoints import Checkpoint
from fedms_jax.models.family import Model
from fedms_jax.simulation import pretraining
from fedms_jax.simulation.state import Handover, Options, Stage


def federation(
  config: Config, checkpoint: Checkpoint | None = None
) -> Federation:
  """Loads the data, as the checkpoint reads it, and deals it to the clients."""
  d, p = config.data, config.partition
  source = sources.load(
    d.source,
    subset=d.subset,
    revision=d.revision,
    train_split=d.train_split,
    test_split=d.test_split,
    input_column=d.input_column,
    label_column=d.label_column,
    group_column=d.group_column,
    image_size=d.image_size,
    max_rows=d.max_rows,
    seed=config.seed,
    synthetic_rows=d.synthetic_rows,
    synthetic_classes=d.synthetic_classes,
    **foundation.reading(config, checkpoint),
  )
  if d.pack:
    source = text.pack(source, d.max_tokens)
  return federations.build(
    source,
    num_clients=p.num_clients,
    unseen_clients=p.unseen_clients,
    name=p.name,
    alpha=p.alpha,
    classes_per_client=p.classes_per_client,
    sigma=p.sigma,
    min_rows=p.min_rows,
    validation=p.validation,
    test=p.test,
    public_fraction=d.public_fraction,
    public_classes=d.public_classes,
    public_shift=d.public_shift,
    seed=config.seed,
    save=p.save,
    load=p.load,
  )


class World(NamedTuple):
  """What a config describes, before anything is computed.

  checkpoint: where the model is loaded from; None: the built-in one. data:
  sorted by client. stages: of the algorithm.
  """

  checkpoint: Checkpoint | None
  data: Federation
  model: Model
  stages: list[Stage]


def world(config: Config) -> World:
  """Finds, reads and checks everything that a run needs."""
  checkpoint = foundation.find(config)
  data = by_client(federation(config, checkpoint))
  model = foundation.model(config, data, checkpoint)
  classes = len(data.table.label_names)
  return World(
    checkpoint, data, model, stages(config, model.backbone, classes)
  )


def initial(config: Config, world: World) -> Roles:
  """The model before this run has trained anything: random, or as loaded."""
  key = rng.stream(config.seed, rng.INIT)
  if world.checkpoint is not None:
    names = world.data.table.label_names
    return fedms.start(
      *foundation.load(config, world.model, names, world.checkpoint, key)
    )

  @jax.jit  # one compilation instead of one per operation
  def init(key):
    base, head = jax.random.split(key)
    model = world.model.backbone
    return fedms.start(model.init(base), model.init_head(head))

  return init(key)


def pretrain_mode(config: Config) -> str:
  """What the server trains: 'full', 'probe' or 'none'."""
  m, mode = config.model, config.pretrain.mode
  if mode != 'auto':
    if mode == 'full' and m.storage != 'float32':
      raise ValueError(
        f'--pretrain.mode=full does not go with --model.storage={m.storage}: '
        'trained weights are float32. Change one of them.'
      )
    if mode == 'probe' and m.head != 'classification':
      raise ValueError(
        f'--pretrain.mode=probe trains a linear head, which --model.head='
        f'{m.head} has not; allowed: full, none.'
      )
    return mode
  if m.name == foundation.BUILT_IN:
    return 'full'
  new = m.head == 'classification' and not m.keep_head
  return 'probe' if new else 'none'


def pretrained_shapes(config: Config, world: World) -> dict[str, Tree]:
  """Shapes of what `pretrained` gives: {'base', 'head'}, or the head alone."""
  model, key = world.model.backbone, jax.random.key(0)
  head = {'head': jax.eval_shape(model.init_head, key)}
  if pretrain_mode(config) != 'full':
    return head
  return head | {'base': jax.eval_shape(model.init, key)}


def pretrained(
  config: Config, world: World, before: Roles, observer
) -> dict[str, Tree]:
  """What the server's pre-training makes of the model `before` it."""
  p, mode = config.pretrain, pretrain_mode(config)
  model, data = world.model.backbone, world.data
  if mode == 'none':
    return {'head': before.frozen['head']}
  per_epoch = pretraining.steps_per_epoch(len(data.public), p.batch_size)
  optimizer = optimizers.pretraining(
    p.learning_rate, p.weight_decay, p.epochs * per_epoch
  )
  setting = _setting(config, model)._replace(optimizer=optimizer)
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


def _targets(config: Config) -> tuple[str, ...]:
  names = config.lora.targets.split(',')
  return tuple(name.strip() for name in names if name.strip())


def _setting(config: Config, model: Backbone) -> fedms.Setting:
  c, s = config.client, config.server
  optimizer = optimizers.client(
    c.optimizer,
    shared=c.learning_rate,
    personal=c.personal_learning_rate or c.learning_rate,
    gate=config.gate.learning_rate or c.learning_rate,
    momentum=c.momentum,
    weight_decay=c.weight_decay,
    max_norm=c.max_norm,
  )
  return fedms.Setting(
    backbone=model,
    task=foundation.task(config),
    optimizer=optimizer,
    server=optimizers.server(s.optimizer, s.learning_rate, s.momentum),
    aggregator=aggregation.mean(),
    targets=_targets(config),
    rank=config.lora.rank,
  )


def _gate(config: Config, model: Backbone, classes: int) -> gate.GateSpec:
  g, learned = config.gate, foundation.task(config)
  if g.kind == 'per_class' and (learned.perplexity or learned.within_batch):
    raise ValueError(
      f'--gate.kind=per_class weighs classes, which --model.head='
      f'{config.model.head} has not; allowed: softmax, sigmoid.'
    )
  level = g.level
  if level == 'sequence' and config.model.head == 'causal_lm':
    level = 'running'
  return gate.GateSpec(
    width=model.width,
    classes=classes,
    kind=g.kind,
    reduction=g.reduction,
    bias=g.bias,
    mix=g.mix,
    level=level,
  )


def stages(
  config: Config, model: Backbone, classes: int, adapter: Tree | None = None
) -> list[Stage]:
  """The stages of the algorithm, with their schedules; adapter: the LoRA that
  the first one starts from, None: fresh."""
  a, g = config.algorithm, config.gate
  if a.name != 'fedms':
    raise ValueError(
      f'--algorithm.name={a.name!r} is no algorithm. Algorithms: fedms.'
    )
  base = jax.eval_shape(model.init, jax.random.key(0))
  lora.check(base['blocks'], _targets(config), config.lora.rank)
  setting = _setting(config, model)
  slope = setting._replace(optimizer=optax.sgd(1.0))
  spec = _gate(config, model, classes)
  choice = fedms.Personal(
    gate=spec,
    local_start=a.local_start,
    local_loss=a.local_loss,
    tower=g.tower,
    upload=a.upload_blocks,
  )
  first = Stage(
    'global',
    fedms.global_stage(setting, adapter=adapter),
    a.stage1_rounds,
    schedule(config, model.blocks, a.stage1_rounds, 'restart'),
    probe=fedms.global_stage(slope, adapter=adapter),
  )
  second = Stage(
    'personal',
    fedms.personal_stage(setting, choice),
    a.stage2_rounds,
    schedule(config, model.blocks, a.stage2_rounds, a.stage2_depth),
    probe=fedms.personal_stage(slope, choice),
  )
  # Stage 1 stays with no rounds, too: it makes the global expert.
  return [first, second] if a.stage2_rounds else [first]


def schedule(
  config: Config, blocks: int, total: int, start: str
) -> Callable[[Handover], activation.Schedule]:
  """The schedule of a stage of `total` rounds. start: 'inherit' the depth of
  the stage before, 'restart', or 'dense'."""
  s, seed = config.schedule, config.seed
  cap = s.cap or blocks
  for name, depth in (('cap', cap), ('start', s.start)):
    if depth > blocks:
      raise ValueError(
        f'--schedule.{name}={depth} is more than the {blocks} blocks of the '
        f'model; allowed: 1 to {blocks}.'
      )
  budgets = _numbers('schedule.budgets', s.budgets, blocks)
  depths = _numbers('schedule.depths', s.depths, blocks)

  def trigger(first: int) -> activation.Trigger:
    return {
      'queue': lambda: activation.queue(
        first, cap, length=s.queue_length, eps=s.eps, step=s.step
      ),
      'fixed': lambda: activation.fixed(
        first, cap, interval=s.interval, step=s.step
      ),
      'linear': lambda: activation.linear(first, cap, rounds=total),
      'geometric': lambda: activation.geometric(
        first, cap, interval=s.interval
      ),
      'dense': lambda: activation.dense(cap),
      'random': lambda: activation.random(
        first, cap, probability=s.probability, step=s.step, seed=seed
      ),
      'manual': lambda: activation.manual(depths, cap),
    }[s.name]()

  trigger(min(s.start, cap))  # fails early where it fails

  def make(handover: Handover) -> activation.Schedule:
    measured = handover.importance() if s.order == 'importance' else None
    order = activation.order(s.order, blocks, seed, measured)
    first = min(s.start, cap)
    if start == 'inherit' and handover.active is not None:
      first = max(first, min(cap, sum(handover.active)))
    when = activation.dense(cap) if start == 'dense' else trigger(first)
    return activation.schedule(when, order, budgets=budgets, seed=seed)

  return make


def _numbers(flag: str, text: str, most: int) -> tuple[int, ...]:
  """Depths written as 1,2,6."""
  try:
    found = tuple(int(part) for part in text.split(',') if part.strip())
  except ValueError:
    raise ValueError(
      f'--{flag}={text!r} is no list of depths; write --{flag}=1,2,4.'
    ) from None
  for depth in found:
    if not 1 <= depth <= most:
      raise ValueError(
        f'--{flag}={text!r} has the depth {depth}; allowed: 1 to {most}, the '
        'blocks of the model.'
      )
  return found


def options(config: Config) -> Options:
  """How the simulation runs."""
  c, e = config.client, config.engine
  return Options(
    seed=config.seed,
    cohort=config.cohort.size,
    batch_size=c.batch_size,
    epochs=c.epochs,
    steps=c.steps,
    clients=e.clients,
    chunk=e.chunk,
    scope=config.columns.scope,
    budget=config.columns.budget_mb * 1e6,
    block=config.columns.batch,
    prefetch=e.prefetch,
    validation_rows=config.eval.validation_rows,
    score=config.schedule.score,
    reports=config.schedule.reports,
    on_nan=config.on_nan,
    slots=optimizers.slots(c.optimizer, c.momentum),
    checkpoint_every=config.checkpoint.every,
  )


def by_client(data: Federation) -> Federation:
  """The same federation with its table sorted by client.

  Then the rows of one client share few blocks of derived columns, and a
  cohort's raw rows are few contiguous pieces.
  """
  order = np.concatenate(
    [
      _interleaved(data.train, data.validation, data.test),
      data.unseen.rows,
      data.public,
    ]
  ).astype(np.int64)
  count = len(data.table.columns['labels'])
  rest = np.setdiff1d(np.arange(count), order, assume_unique=False)
  order = np.concatenate([order, rest])
  place = np.empty(count, np.int32)
  place[order] = np.arange(count, dtype=np.int32)
  columns = {k: v[order] for k, v in data.table.columns.items()}

  def moved(partition):
    return partition._replace(rows=place[partition.rows])

  return data._replace(
    table=data.table._replace(columns=columns),
    train=moved(data.train),
    validation=moved(data.validation),
    test=moved(data.test),
    unseen=moved(data.unseen),
    pooled=place[data.pooled],
    public=place[data.public],
  )


def _interleaved(*partitions) -> np.ndarray:
  """The rows of several partitions of the same clients, client by client."""
  owner = np.concatenate(
    [np.repeat(np.arange(p.num_clients), p.sizes()) for p in partitions]
  )
  rows = np.concatenate([p.rows for p in partitions])
  return rows[np.argsort(owner, kind='stable')]
