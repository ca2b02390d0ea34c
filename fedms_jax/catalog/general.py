"""Baselines of federated learning at large."""

from __future__ import annotations

import jax

from fedms_jax.algorithms import general, scaffold
from fedms_jax.catalog.workbench import Method, Workbench
from fedms_jax.simulation.state import Stage


def _fedavg(bench: Workbench) -> list[Stage]:
  storage = bench.config.model.storage
  if storage != 'float32':
    raise ValueError(
      f'--algorithm.name=fedavg trains all weights, not those of --model.'
      f'storage={storage}; allowed: float32. Change one of them.'
    )
  return bench.alone('global', bench.setting(), general.fedavg, start='dense')


def _probe(bench: Workbench) -> list[Stage]:
  head = jax.eval_shape(bench.backbone.init_head, jax.random.key(0))
  if not jax.tree.leaves(head):
    raise ValueError(
      '--algorithm.name=linear_probe trains a head, which --model.head='
      f'{bench.config.model.head} has not; allowed: classification. Change '
      'one of them.'
    )
  return bench.alone('global', bench.setting(), general.probe, start='dense')


def _fedprox(bench: Workbench) -> list[Stage]:
  mu = bench.config.algorithm.prox_mu
  return bench.alone(
    'global',
    bench.setting(),
    lambda s: general.fedprox(s, mu, adapter=bench.adapter),
  )


def _scaffold(bench: Workbench) -> list[Stage]:
  population = bench.config.partition.num_clients
  return bench.alone(
    'global',
    bench.setting(merges=True),
    lambda s: scaffold.scaffold(s, population, adapter=bench.adapter),
  )


METHODS = {
  'fedavg': Method(
    'FedAvg of all weights: full fine-tuning', 'arXiv 1602.05629', _fedavg
  ),
  'linear_probe': Method(
    'FedAvg of a linear head on the frozen base', 'arXiv 1602.05629', _probe
  ),
  'fedprox': Method(
    "LoRA, pulled to the server's", 'arXiv 1812.06127', _fedprox
  ),
  'scaffold': Method(
    'LoRA, with control variates against drift', 'arXiv 1910.06378', _scaffold
  ),
}
