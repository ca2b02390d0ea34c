"""Knowledge that passes otherwise than by averages alone."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from fedms_jax.adapters import bottleneck
from fedms_jax.algorithms import (
  feddat,
)
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import Algorithm
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage

Maker = Callable[[Setting], Algorithm]


def _stage(
  builder: Builder, setting: Setting, make: Maker, probe: Maker | None = None
) -> list[Stage]:
  """The one stage of a method. probe: whose first step, by plain SGD, measures
  the importance of blocks; None: its own."""
  slope = (probe or make)(setting._replace(optimizer=optax.sgd(1.0)))
  return [builder.stage('personal', make(setting), builder.rounds, probe=slope)]


def _feddat(builder: Builder) -> list[Stage]:
  _no_lora(builder, 'trains bottlenecks')
  _no_pairs(builder, 'compares predictions of classes or tokens')
  own = builder.own
  names = tuple(x.strip() for x in own.targets.split(',') if x.strip())
  spec = bottleneck.Bottleneck(own.reduction, names)
  spec.check(jax.eval_shape(builder.backbone.init, jax.random.key(0))['blocks'])
  return _stage(
    builder,
    builder.setting(),
    lambda s: feddat.feddat(s, spec, own.distill),
  )


def _no_lora(builder: Builder, why: str) -> None:
  """Raises `ValueError` if there is an adapter to start from."""
  name, given = builder.config.algorithm.name, builder.config.lora.init
  if given:
    raise ValueError(
      f'--lora.init={given} does not go with --algorithm.name={name}, which '
      f'{why}; allowed: none. Leave it out.'
    )


def _no_pairs(builder: Builder, why: str) -> None:
  """Raises `ValueError` if a row's logits compare it with other rows."""
  if builder.config.model.head == 'contrast':
    raise ValueError(
      f'--algorithm.name={builder.config.algorithm.name} {why}, and '
      '--model.head=contrast has pairs; allowed: any other head. Change one of '
      'them.'
    )


STAGES: dict[str, Callable[[Builder], list[Stage]]] = {
  'feddat': _feddat,
}
