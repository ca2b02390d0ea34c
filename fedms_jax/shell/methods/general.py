"""Baselines of federated learning at large."""

from __future__ import annotations

import jax

from fedms_jax.algorithms import fedfn, general, scaffold
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Stage


def _fedavg(builder: Builder) -> list[Stage]:
  builder.check_float32('trains all weights')
  return builder.alone(
    'global', builder.setting(), general.fedavg, start='dense'
  )


def needs_head(builder: Builder, why: str) -> None:
  """Raises `ValueError` if the model has no head that trains. why: what the
  method does with it."""
  head = jax.eval_shape(builder.backbone.init_head, jax.random.key(0))
  if not jax.tree.leaves(head):
    name, kind = builder.config.algorithm.name, builder.config.model.head
    raise ValueError(
      f'--algorithm.name={name} {why} a head, which --model.head={kind} has '
      'not; allowed: classification. Change one of them.'
    )


def _probe(builder: Builder) -> list[Stage]:
  needs_head(builder, 'trains')
  return builder.alone(
    'global', builder.setting(), general.probe, start='dense'
  )


def _fedprox(builder: Builder) -> list[Stage]:
  mu = builder.own.mu
  return builder.alone(
    'global',
    builder.setting(),
    lambda s: general.fedprox(s, mu, adapter=builder.adapter),
  )


def _scaffold(builder: Builder) -> list[Stage]:
  population = builder.config.partition.num_clients
  return builder.alone(
    'global',
    builder.setting(merges=True),
    lambda s: scaffold.scaffold(s, population, adapter=builder.adapter),
  )


def _fedfn(builder: Builder) -> list[Stage]:
  needs_head(builder, 'normalizes the features before')
  own = builder.own
  return builder.alone(
    'global',
    builder.setting(),
    lambda s: fedfn.fedfn(
      s, own.length, own.head_rate, adapter=builder.adapter
    ),
  )


STAGES = {
  'fedavg': _fedavg,
  'linear_probe': _probe,
  'fedprox': _fedprox,
  'scaffold': _scaffold,
  'fedfn': _fedfn,
}
