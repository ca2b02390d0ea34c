"""Personalized methods: what stays with a client, or a second model."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from fedms_jax.algorithms import fedms, moreau, personal, two_models
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.types import Algorithm
from fedms_jax.shell.methods.builder import Builder, Method
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
  share = builder.config.algorithm.fedrep_head_share
  return personal.fedrep(setting, share, adapter=builder.adapter)


def _ditto(builder: Builder, setting: Setting) -> Algorithm:
  pull = builder.config.algorithm.ditto_lambda
  return two_models.ditto(setting, pull, adapter=builder.adapter)


def _apfl(builder: Builder, setting: Setting) -> Algorithm:
  a = builder.config.algorithm
  return two_models.apfl(
    setting,
    a.apfl_alpha,
    a.apfl_alpha_learning_rate,
    adapter=builder.adapter,
  )


def _feddpa(builder: Builder, setting: Setting) -> Algorithm:
  scale = builder.config.algorithm.feddpa_scale
  return two_models.feddpa(setting, scale, adapter=builder.adapter)


def _pfedme(builder: Builder, setting: Setting) -> Algorithm:
  a = builder.config.algorithm
  return moreau.pfedme(
    setting,
    pull=a.pfedme_lambda,
    steps=a.pfedme_steps,
    learning_rate=a.pfedme_learning_rate,
    adapter=builder.adapter,
  )


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


METHODS = {
  'local': Method(
    'LoRA and head of each client alone: nothing is shared', '-',
    _stages(_local),
  ),
  'fedper': Method(
    'LoRA shared, head personal', 'arXiv 1912.00818', _stages(_fedper)
  ),
  'fedrep': Method(
    'head first, then LoRA; LoRA shared, head personal', 'arXiv 2102.07078',
    _stages(_fedrep, probe=_fedper),
  ),
  'ditto': Method(
    'own model, pulled to that of FedAvg', 'arXiv 2012.04221',
    _stages(_ditto),
  ),
  'apfl': Method(
    'own and shared model, mixed by a weight that each client learns',
    'arXiv 2003.13461', _stages(_apfl),
  ),
  'pfedme': Method(
    'own model by Moreau envelopes of the shared one', 'arXiv 2006.08848',
    _stages(_pfedme, probe=_global),
  ),
  'feddpa': Method(
    "local and global LoRA, weighed by an input's likeness to the client's",
    'arXiv 2403.19211', _stages(_feddpa),
  ),
}  # fmt: skip
