"""Personalized methods: what stays with a client, or a second model."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from fedms_jax.algorithms import fedms, moreau, personal, pfedlora, two_models
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import Algorithm
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage

# A method for the builder's flags, with the optimizers of a setting.
Maker = Callable[[Builder, Setting], Algorithm]


def _stages(make: Maker, probe: Maker | None = None):
  """A method of one stage. probe: measures the importance of blocks, where
  the method's own first step would not."""

  def stages(builder: Builder) -> list[Stage]:
    common = builder.setting()
    slope = common._replace(optimizer=optax.sgd(1.0))
    return [
      builder.stage(
        'personal',
        make(builder, common),
        builder.rounds,
        probe=(probe or make)(builder, slope),
      )
    ]

  return stages


def _global(builder: Builder, setting: Setting) -> Algorithm:
  return fedms.global_stage(setting, adapter=builder.adapter)


def _local(builder: Builder, setting: Setting) -> Algorithm:
  return personal.local_only(setting, adapter=builder.adapter)


def _fedper(builder: Builder, setting: Setting) -> Algorithm:
  _needs_head(builder)
  return personal.fedper(setting, adapter=builder.adapter)


def _fedrep(builder: Builder, setting: Setting) -> Algorithm:
  _needs_head(builder)
  share = builder.own.head_share
  return personal.fedrep(setting, share, adapter=builder.adapter)


def _ditto(builder: Builder, setting: Setting) -> Algorithm:
  pull = builder.own.pull
  return two_models.ditto(setting, pull, adapter=builder.adapter)


def _apfl(builder: Builder, setting: Setting) -> Algorithm:
  own, adapter = builder.own, builder.adapter
  return two_models.apfl(
    setting, own.alpha, own.alpha_learning_rate, adapter=adapter
  )


def _feddpa(builder: Builder, setting: Setting) -> Algorithm:
  scale = builder.own.scale
  return two_models.feddpa(setting, scale, adapter=builder.adapter)


def _pfedme(builder: Builder, setting: Setting) -> Algorithm:
  own = builder.own
  return moreau.pfedme(
    setting,
    pull=own.pull,
    steps=own.steps,
    learning_rate=own.learning_rate,
    adapter=builder.adapter,
  )


def _pfedlora(builder: Builder, setting: Setting) -> Algorithm:
  _needs_head(builder)
  own = builder.own
  choice = pfedlora.Choice(own.rank, own.weight, own.model_share)
  return pfedlora.pfedlora(setting, choice, adapter=builder.adapter)


def _needs_head(builder: Builder) -> None:
  """Raises `ValueError` if the model has no head of its own to keep."""
  head = jax.eval_shape(builder.backbone.init_head, jax.random.key(0))
  if not jax.tree.leaves(head):
    name, kind = builder.config.algorithm.name, builder.config.model.head
    raise ValueError(
      f'--algorithm.name={name} keeps the head personal, but --model.head='
      f'{kind} has none that trains; allowed: classification. Set '
      '--model.head=classification, or take another method.'
    )


STAGES: dict[str, Callable[[Builder], list[Stage]]] = {
  'local': _stages(_local),
  'fedper': _stages(_fedper),
  'fedrep': _stages(_fedrep, probe=_fedper),
  'ditto': _stages(_ditto),
  'apfl': _stages(_apfl),
  'pfedme': _stages(_pfedme, probe=_global),
  'feddpa': _stages(_feddpa),
  'pfedlora': _stages(_pfedlora, probe=_local),
}
