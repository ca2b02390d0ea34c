"""FedMS from flags."""

from __future__ import annotations

import optax

from fedms_jax.algorithms import fedms
from fedms_jax.models import gate
from fedms_jax.shell import foundation
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage


def _fedms(builder: Builder) -> list[Stage]:
  a, g, own = builder.config.algorithm, builder.config.gate, builder.own
  common, adapter = builder.setting(), builder.adapter
  slope = common._replace(optimizer=optax.sgd(1.0))
  choice = fedms.Personal(
    gate=_gate(builder),
    local_start=own.local_start,
    local_loss=own.local_loss,
    tower=g.tower,
    scope=g.scope,
    upload=own.upload_blocks,
  )
  first = builder.stage(
    'global',
    fedms.global_stage(common, adapter=adapter),
    a.stage1_rounds,
    probe=fedms.global_stage(slope, adapter=adapter),
  )
  second = builder.stage(
    'personal',
    fedms.personal_stage(common, choice),
    a.stage2_rounds,
    start=own.stage2_depth,
    probe=fedms.personal_stage(slope, choice),
  )
  # Stage 1 stays with no rounds, too: it makes the global expert.
  return [first, second] if a.stage2_rounds else [first]


def _gate(builder: Builder) -> gate.GateSpec:
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
    bias=g.bias,
    mix=g.mix,
    level=level,
  )


STAGES = {'fedms': _fedms}
