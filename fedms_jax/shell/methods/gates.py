"""FedMS's gate from flags: its form, and the rows that it learns from."""

from __future__ import annotations

import dataclasses
import functools

from fedms_jax.algorithms import mixture
from fedms_jax.core.types import Task
from fedms_jax.data import fresh
from fedms_jax.models import gate
from fedms_jax.shell import build, foundation
from fedms_jax.shell.config import GateConfig
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Fresh

_ODDS_RATE = 0.05  # of a gate that is fitted


def resolved(builder: Builder) -> Builder:
  """The builder whose flags of the gate say what is done, where they leave it
  open; these are checked.

  Raises:
    ValueError: a flag that says nothing of the others.
  """
  g = builder.config.gate
  learned = foundation.task(builder.config.model, builder.model)
  odds = g.odds_rate
  if odds < 0:
    odds = 0.0 if g.rows == 'train' else _ODDS_RATE
  _check_rows(builder, g.rows, learned)
  inputs = g.inputs
  if inputs == 'auto':
    judged = _classes(learned) and g.mix != 'features' and g.kind != 'fixed'
    inputs = 'feature,confidence' if judged else 'feature'
  made = dataclasses.replace(g, odds_rate=odds, inputs=inputs)
  config = dataclasses.replace(builder.config, gate=made)
  return builder._replace(config=config)


def fit(builder: Builder) -> mixture.Fit:
  """How the gate is fitted to fresh rows."""
  c, g = builder.config.client, builder.config.gate
  rate = g.learning_rate or c.learning_rate
  odds = g.odds_rate or rate  # a gate without log-odds does not ask
  return mixture.Fit(g.fit_steps, rate, odds, g.pull)


def fresh_rows(builder: Builder) -> Fresh | None:
  """The rows that the gate is fitted to."""
  g = builder.config.gate
  if g.rows == 'train':
    return None
  return functools.partial(
    fresh.rows,
    kind=g.rows,
    share=g.share,
    most=g.most_rows,
    public=g.public,
    seed=builder.config.seed,
    stage=1,
  )


def _classes(learned: Task) -> bool:
  """Whether logits [B, C] are of classes, of which each row has one."""
  return learned.kind == 'classes' and not (
    learned.perplexity or learned.within_batch
  )


def _inputs(g: GateConfig, learned: Task) -> tuple[str, ...]:
  """What the gate reads."""
  allowed = ('feature', *gate.MEASURES)
  found = tuple(x.strip() for x in g.inputs.split(',') if x.strip())
  for name in found:
    if name not in allowed or found.count(name) > 1:
      raise ValueError(
        f'--gate.inputs={g.inputs} names {name!r}; allowed: each once of '
        f'{", ".join(allowed)}.'
      )
    if name == 'confidence' and not _classes(learned):
      raise ValueError(
        f'--gate.inputs={g.inputs} has {name}, which is of classes, and there '
        'are none here; allowed: feature, likeness.'
      )
    if name == 'confidence' and g.mix == 'features':
      raise ValueError(
        f'--gate.inputs={g.inputs} has {name}, which is of the logits of both '
        'experts, and --gate.mix=features mixes what comes before them; '
        'allowed: feature, likeness. Or choose another --gate.mix.'
      )
    if name == 'likeness' and (learned.perplexity or learned.within_batch):
      raise ValueError(
        f'--gate.inputs={g.inputs} has {name}, which is of whole inputs, and '
        f'{learned.name} is not; allowed: feature.'
      )
  if not found and not g.odds_rate and g.kind != 'fixed':
    raise ValueError(
      '--gate.inputs= leaves the gate a log-odds alone, and --gate.odds_rate=0 '
      'none; allowed: more than 0. Give --gate.odds_rate=0.05.'
    )
  return found


def spec(builder: Builder) -> gate.GateSpec:
  """The form of the gate."""
  g, learned = (
    builder.config.gate,
    foundation.task(builder.config.model, builder.model),
  )
  head = builder.config.model.head
  if g.kind == 'per_class' and (learned.perplexity or learned.within_batch):
    raise ValueError(
      f'--gate.kind=per_class weighs classes, which --model.head={head} has '
      'not; allowed: softmax, sigmoid, fixed.'
    )
  if g.mix == 'probabilities' and learned.kind in ('values', 'tags', 'levels'):
    raise ValueError(
      f'--gate.mix=probabilities mixes those of classes, which --model.head='
      f'{head} has not; allowed: logits, features, top1.'
    )
  for name in ('tower', 'scope'):
    value, usual = getattr(g, name), getattr(type(g)(), name)
    if g.kind == 'fixed' and value != usual:
      raise ValueError(
        f'--gate.kind=fixed has no gate that --gate.{name}={value} could say '
        f'anything of; allowed: {usual}. Leave --gate.{name} out.'
      )
  level = g.level
  if level == 'sequence' and head == 'causal_lm':
    level = 'running'
  return gate.GateSpec(
    width=builder.backbone.width,
    classes=builder.classes,
    kind=g.kind,
    reduction=g.reduction,
    bias=build.bias(builder.config),
    mix=g.mix,
    level=level,
    inputs=_inputs(g, learned),
    odds=g.odds_rate > 0 and g.kind != 'fixed',
  )


# What is of fresh rows alone.
_OF_FRESH = ('public', 'most_rows', 'fit_steps', 'pull', 'share')


def _check_rows(builder: Builder, rows: str, learned: Task) -> None:
  """Raises `ValueError` for flags of the gate's rows that say nothing."""
  g, usual = builder.config.gate, type(builder.config.gate)()
  if learned.within_batch and rows != 'train':
    raise ValueError(
      f'--gate.rows={rows} takes rows one by one, and '
      f'--model.head={builder.config.model.head} compares those of a batch; '
      'allowed: train.'
    )
  d = builder.config.data
  if g.public and not (d.public_fraction or d.public_classes):
    raise ValueError(
      f'--gate.public={g.public} needs public rows, of which '
      '--data.public_fraction=0 leaves none. Leave one of them out.'
    )
  unread = _OF_FRESH if rows == 'train' else ()
  unread = ('share',) if rows == 'validation' else unread
  fixed = ('odds_rate', 'inputs') if g.kind == 'fixed' else ()
  for name in (*unread, *fixed):
    value = getattr(g, name)
    if value != getattr(usual, name):
      why = f'--gate.rows={rows}' if name in unread else '--gate.kind=fixed'
      raise ValueError(
        f'--gate.{name}={value} says nothing of {why}; allowed: '
        f'{getattr(usual, name)}. Leave it out.'
      )
