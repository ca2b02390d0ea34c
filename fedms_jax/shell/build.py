"""From sections of a config to the values that a run is made of.

What they ask for is checked here, against data and model, before anything is
compiled. Each function takes the sections that it reads, so that a run may have
several of them. Below the shell there are no config objects.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from fedms_jax import schedules
from fedms_jax.adapters.lora import Spec
from fedms_jax.algorithms import fedms
from fedms_jax.core.types import Backbone, Task
from fedms_jax.data import private_rows
from fedms_jax.schedules import f3ocus, orders, triggers
from fedms_jax.server import averaged, optimizers
from fedms_jax.shell import plugged
from fedms_jax.shell.config import (
  ClientConfig,
  Config,
  GateConfig,
  LoraConfig,
  ScheduleConfig,
  ServerConfig,
)
from fedms_jax.shell.config.privacy import EXAMPLE
from fedms_jax.shell.watched import NOTHING, Watched
from fedms_jax.simulation.state import Curve, Handover, Options


def with_rate(c: ClientConfig, rate: float) -> ClientConfig:
  """The section with another learning rate; 0: as it is."""
  return dataclasses.replace(c, learning_rate=rate) if rate else c


def _may_correct(config: Config) -> bool:
  """Whether a local expert could learn what the global one lacks, as a small
  part of their mixture. It takes larger steps for it: Adam's do not shrink with
  its part, those of SGD would. A small part of probabilities changes no
  decision, and of a hard choice an expert learns nothing that it has no part
  in."""
  return (
    config.gate.mix in ('logits', 'features')
    and config.client.optimizer != 'sgd'
  )


def local_loss(config: Config) -> str:
  """What trains FedMS's local expert."""
  asked = config.methods.fedms.local_loss
  if asked != 'auto':
    return asked
  alike = config.gate.rows == 'train'
  return 'mixture' if alike and _may_correct(config) else 'own'


def _corrects(config: Config) -> bool:
  """Whether FedMS's local expert learns what the global one lacks."""
  return (
    config.algorithm.name == 'fedms'
    and local_loss(config) == 'mixture'
    and _may_correct(config)
  )


def bias(config: Config) -> float:
  """The log-odds of the global expert with which the gate begins."""
  if config.gate.bias != 'auto':
    return float(config.gate.bias)
  return 2.6 if _corrects(config) else 0.0


def rates(config: Config) -> dict[str, float]:
  """The learning rates of clients' optimizers, see `Moment.rates`."""
  c, gate = config.client, config.gate
  personal = c.personal_learning_rate
  if personal < 0:
    personal = 10 / 3 * c.learning_rate if _corrects(config) else 1e-3
  return {
    'shared': c.learning_rate,
    'personal': personal or c.learning_rate,
    'gate': gate.learning_rate or c.learning_rate,
  }


def lora_spec(config: LoraConfig) -> Spec:
  """The LoRA of a run."""
  names = config.targets.split(',')
  targets = tuple(name.strip() for name in names if name.strip())
  return Spec(config.rank, config.alpha, targets)


def setting(
  model: Backbone,
  task: Task,
  c: ClientConfig,
  s: ServerConfig,
  gate: GateConfig,
  lora: LoraConfig,
  aggregator: averaged.Aggregator,
  horizon: int = 0,
) -> fedms.Setting:
  """What all algorithms on one backbone have in common. horizon: local steps
  of the run in all, for rates that follow its clock. Learning rates are inputs
  of a round, see `rates`."""
  course = None
  if c.schedule == 'cosine':
    warmup = max(1, round(c.warmup * horizon))
    course = optimizers.Course(horizon, warmup, c.final_rate)
  optimizer = optimizers.client(
    c.optimizer,
    odds=max(gate.odds_rate, 0.0),
    momentum=c.momentum,
    weight_decay=c.weight_decay,
    max_norm=c.max_norm,
    betas=(c.beta1, c.beta2),
    course=course,
  )
  return fedms.Setting(
    model=model,
    task=task,
    optimizer=optimizer,
    outer=optimizers.server(s.optimizer, s.learning_rate, s.momentum),
    aggregator=aggregator,
    lora=lora_spec(lora),
  )


def schedule(
  s: ScheduleConfig,
  blocks: int,
  total: int,
  start: str,
  ends: str = 'rounds',
) -> Callable[[Handover, int], schedules.Schedule]:
  """(handover, seed) -> the schedule of a stage of `total` rounds.

  start: 'inherit' the depth of the stage before, 'continue' as if it were the
  same stage, 'restart', or 'dense'. ends: the stage ends after its 'rounds',
  when its 'queue' has settled at the cap, or when its score on 'validation'
  rows, or what else the schedule watches, no longer grows.
  """
  cap = s.cap or blocks
  for name, depth in (('cap', cap), ('start', s.start)):
    if depth > blocks:
      raise ValueError(
        f'--schedule.{name}={depth} is more than the {blocks} blocks of the '
        f'model; allowed: 1 to {blocks}.'
      )
  budgets = numbers('schedule.budgets', s.budgets, blocks)
  depths = numbers('schedule.depths', s.depths, blocks)

  if s.name == 'manual':
    triggers.manual(depths, cap)  # fails early where it fails

  def make(handover: Handover, seed: int) -> schedules.Schedule:
    first = min(s.start, cap)
    goes_on = start == 'continue'
    if start == 'inherit' and handover.active is not None:
      first = max(first, min(cap, sum(handover.active)))
    rounds = handover.rounds or total
    # One that goes on has the rounds of both stages to be at the cap.
    rounds += handover.before * goes_on
    eps = _noise(s, handover.rows)
    when = _trigger(s, first, cap, depths, eps, seed, rounds)
    if start == 'dense':
      when = triggers.dense(cap)
    if goes_on:
      when = triggers.continued(when, handover.trigger, handover.before)
    where = _where(s, blocks, seed, handover)
    by_scores = None
    if s.order == 'f3ocus' and start != 'dense':
      by_scores = f3ocus.pick(s.search, seed)
    made = schedules.schedule(
      when,
      where,
      budgets=budgets,
      seed=seed,
      ends=ends == 'queue',
      by_scores=by_scores,
    )
    if ends == 'validation':
      made = schedules.until_flat(made, s.queue_length, eps)
    return schedules.delayed(made, 1)  # so that a round may be in flight

  return make


def _noise(s: ScheduleConfig, rows: int) -> float:
  """What a score may move by that rests on so many rows: it moves in steps, and
  what is under a few of them is noise."""
  return max(s.eps, s.resolution / max(rows, 1))


def _trigger(
  s: ScheduleConfig,
  first: int,
  cap: int,
  depths: Sequence[int],
  eps: float,
  seed: int,
  total: int,
) -> triggers.Trigger:
  """The trigger of a stage of `total` rounds that begins with `first` blocks.
  depths: of a manual one. eps: see `_noise`."""
  made = {
    'queue': lambda: triggers.queue(
      first, cap, length=s.queue_length, eps=eps, step=s.step
    ),
    'queue_std': lambda: triggers.queue(
      first,
      cap,
      length=s.queue_length,
      eps=s.eps,
      step=s.step,
      spread=statistics.pstdev,
    ),
    'fixed': lambda: triggers.fixed(
      first, cap, interval=s.interval, step=s.step
    ),
    'linear': lambda: triggers.linear(first, cap, rounds=total),
    'geometric': lambda: triggers.geometric(first, cap, interval=s.interval),
    'dense': lambda: triggers.dense(cap),
    'random': lambda: triggers.random(
      first, cap, probability=s.probability, step=s.step, seed=seed
    ),
    'manual': lambda: triggers.manual(depths, cap),
  }.get(s.name)
  begin = triggers.Begin(first, cap, total, seed)
  return made() if made else plugged.trigger(s.name, begin)


def _where(s: ScheduleConfig, blocks: int, seed: int, handover: Handover):
  """Which blocks `--schedule.order` picks."""
  if s.order == 'window':
    return orders.window(blocks)
  if s.order == 'dropout':
    return orders.dropout(blocks, seed)
  if s.order == 'allocation':
    weights = (
      handover.importance()
      if s.shape == 'importance'
      else orders.shape(s.shape, blocks)
    )
    return orders.allocation(blocks, seed, weights)
  if s.order == 'balanced':
    return orders.balanced(handover.importance(), s.balance, seed)
  if s.order == 'f3ocus':  # until there are scores, and for dense stages
    return orders.order('top_down', blocks, seed)
  measured = handover.importance() if s.order == 'importance' else None
  return orders.order(s.order, blocks, seed, measured)


def numbers(flag: str, text: str, most: int) -> tuple[int, ...]:
  """Depths written as 1,2,6."""
  try:
    found = tuple(int(part) for part in text.split(',') if part.strip())
    if text and not found:
      raise ValueError
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


def row_cap(config: Config) -> int:
  """The most rows of a step that is private by example; 0: it is not."""
  p, size = config.privacy, config.client.batch_size
  if p.mode != EXAMPLE:
    return 0
  return private_rows.cap(size, p.batch_cap)


def options(config: Config, watched: Watched = NOTHING) -> Options:
  """How the simulation runs."""
  c, e = config.client, config.engine
  return Options(
    seed=config.seed,
    cohort=config.cohort.size,
    sampling=plugged.sampler(config.cohort.sampling),
    cap=config.cohort.cap,
    groups=config.cohort.groups,
    row_cap=row_cap(config),
    dropout=config.cohort.dropout,
    batch_size=c.batch_size,
    epochs=c.epochs,
    steps=c.steps,
    clients=e.clients,
    chunk=e.chunk,
    unroll=e.unroll,
    memory=e.memory_mb * 1e6,
    personal=e.personal_mb * 1e6,
    scope=config.columns.scope,
    place=config.columns.place,
    budget=config.columns.budget_mb * 1e6,
    host_budget=config.columns.host_budget_mb * 1e6,
    block=config.columns.batch,
    prefetch=e.prefetch,
    validation_rows=config.eval.validation_rows,
    score=watched.score,
    reports=config.schedule.reports,
    validate_every=config.eval.validate_every,
    metrics=watched.metrics,
    curve=Curve(
      config.eval.every,
      config.eval.sample or config.eval.clients,
      config.eval.readers,
      config.eval.mixed,
    ),
    stop=watched.stop,
    on_nan=config.on_nan,
    slots=optimizers.slots(c.optimizer, c.momentum),
    # Sums with noise are divided by a number of clients.
    weights='equal' if config.privacy.on else config.server.weights,
    rates=rates(config),
  )
