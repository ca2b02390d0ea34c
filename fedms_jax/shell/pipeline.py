"""The stages of a run, from --stages or of its algorithm alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from fedms_jax.algorithms import fedms, full
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import inner_state
from fedms_jax.core.types import Tree
from fedms_jax.models.family import Model
from fedms_jax.server import averaged, optimizers
from fedms_jax.shell import aggregators, build, foundation, methods
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.stages import Phase
from fedms_jax.shell.methods import pretraining
from fedms_jax.simulation.state import Stage

_NAMES = {'S': 'server', 'F': 'federated', 'W': 'windows'}
# Phases of one kind go on where the last one ended; windows are of the same
# clients, with the same server, as the other federated phases.
_SERIES = {'S': 'server', 'F': 'federated', 'W': 'federated'}


def stages(
  config: Config,
  first: Model,
  model: Model,
  classes: int,
  adapter: Tree | None = None,
) -> list[Stage]:
  """All stages of a run.

  Args:
    config: of the run.
    first: the model as the phases of --stages train it.
    model: as the algorithm takes it; the same if both learn the same.
    classes: of the data.
    adapter: the stacked LoRA that the algorithm starts from; None: fresh.

  Raises:
    ValueError: they do not fit each other, or model and data.
  """
  phases, method = config.pipeline
  if not phases:
    return methods.stages(config, model, classes, adapter)
  out = _phases(config, first, phases)
  if not method:
    return out
  if methods.reads_names(method, model):
    raise ValueError(
      f'--stages={config.stages}: {method} learns prompts of a text tower, '
      'which belongs to the image tower as it was loaded. Leave the phases '
      'before it out.'
    )
  made = methods.stages(_after(config), model, classes, adapter)
  begins = full.downstream(made[0].algorithm, first.backbone, model.backbone)
  made[0] = made[0]._replace(algorithm=begins)
  return [*out, *(stage._replace(rebased=True) for stage in made)]


def _after(config: Config) -> Config:
  """The config of the method after phases: --client.state is for those where
  all weights train."""
  if config.algorithm.name in ('fdapt', 'ffdapt'):
    return config
  client = dataclasses.replace(config.client, state='reset')
  return dataclasses.replace(config, client=client)


def _phases(
  config: Config, first: Model, phases: tuple[Phase, ...]
) -> list[Stage]:
  """The phases in which all weights train."""
  made: dict[str, Any] = {}
  out, seen = [], dict.fromkeys(_NAMES, 0)
  dense = pretraining.dense(first.backbone.blocks)
  for phase in phases:
    kind = phase.kind
    seen[kind] += 1
    more = sum(other.kind == kind for other in phases) > 1
    if kind not in made:
      made[kind] = _algorithm(config, first, phases, kind)
    schedule = dense
    if kind == 'W':
      schedule = pretraining.frozen_windows(
        config.methods.ffdapt, first.backbone.blocks
      )
    rounds, local = _local(config, phase)
    out.append(
      Stage(
        _NAMES[kind] + (f'-{seen[kind]}' if more else ''),
        made[kind],
        rounds,
        schedule,
        central=kind == 'S',
        local=local,
        series=_SERIES[kind],
        rebased=True,
      )
    )
  return out


def _local(config: Config, phase: Phase) -> tuple[int, dict[str, Any]]:
  """(rounds of a phase, its own of the simulation's options)."""
  if phase.kind != 'S':
    c = build.with_rate(config.client, config.pretrain.client_rate)
    own = {'steps': phase.steps or c.steps}
    own |= {'rates': build.rates(dataclasses.replace(config, client=c))}
    return phase.rounds, own | pretraining.slots(config.client.state)
  return pretraining.of_server(phase.steps, config.pretrain.batch_size)


def _algorithm(config: Config, first: Model, phases, kind: str):
  """The algorithm of all phases of a kind, whose rates fall over all of
  them."""
  p, c = config.pretrain, config.client
  task = foundation.task(config.first_model, first)
  if kind == 'S':
    steps = sum(phase.steps for phase in phases if phase.kind == 'S')
    setting = Setting(  # of one client, which has all rows
      model=first.backbone,
      task=task,
      optimizer=optimizers.pretraining(p.learning_rate, p.weight_decay, steps),
      outer=optax.sgd(1.0),
      aggregator=averaged.mean(),
      lora=build.lora_spec(config.lora),
    )
    return inner_state.central(full.full_model(setting))
  horizon = sum(
    phase.rounds * (phase.steps or c.steps)
    for phase in phases
    if phase.kind != 'S'
  )
  setting: fedms.Setting = build.setting(
    first.backbone,
    task,
    build.with_rate(c, p.client_rate),
    config.server,
    config.gate,
    config.lora,
    aggregators.aggregator(config),
    horizon,
  )
  return pretraining.federated(setting, c.state, alike=kind == 'F')
