"""The one place that knows everything: Config -> data, model, stages.

What a config asks for is checked here, against data and model, before
anything is compiled. Below this file there are no config objects.
"""

from __future__ import annotations

from collections.abc import Callable

from fedms_jax import (
  activation,
  aggregation,
  foundation,
  optimizers,
)
from fedms_jax.algorithms import fedms
from fedms_jax.base import Backbone, Federation
from fedms_jax.config import Config
from fedms_jax.data import federation as federations
from fedms_jax.data import sources, text
from fedms_jax.models.checkpoints import Checkpoint
from fedms_jax.simulation.state import Handover, Options


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


def targets(config: Config) -> tuple[str, ...]:
  """The kernels that carry LoRA."""
  names = config.lora.targets.split(',')
  return tuple(name.strip() for name in names if name.strip())


def setting(config: Config, model: Backbone) -> fedms.Setting:
  """What all algorithms of a run have in common."""
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
    targets=targets(config),
    rank=config.lora.rank,
  )


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

  def trigger(first: int, rows: int) -> activation.Trigger:
    # A score of few rows moves in steps; what is under a few of them is noise.
    eps = max(s.eps, s.resolution / max(rows, 1))
    return {
      'queue': lambda: activation.queue(
        first, cap, length=s.queue_length, eps=eps, step=s.step
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

  trigger(min(s.start, cap), 1)  # fails early where it fails

  def make(handover: Handover) -> activation.Schedule:
    measured = handover.importance() if s.order == 'importance' else None
    order = activation.order(s.order, blocks, seed, measured)
    first = min(s.start, cap)
    if start == 'inherit' and handover.active is not None:
      first = max(first, min(cap, sum(handover.active)))
    dense = start == 'dense'
    when = activation.dense(cap) if dense else trigger(first, handover.rows)
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
