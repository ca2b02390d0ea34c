"""Federated pre-training: FDAPT and FFDAPT, and the phases of a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedms_jax import schedules
from fedms_jax.algorithms import full
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import inner_state
from fedms_jax.core.contract import Algorithm
from fedms_jax.schedules import Schedule, triggers, windows
from fedms_jax.server import measures
from fedms_jax.shell.catalog.pretraining import Ffdapt
from fedms_jax.shell.methods.builder import Builder
from fedms_jax.simulation.state import Handover, Stage

PER_ROUND = 50  # most steps of the server from one line of metrics to the next


def dense(blocks: int) -> Callable[[Handover], Schedule]:
  """All blocks train, always."""
  made = schedules.schedule(triggers.dense(blocks), range(blocks))
  return lambda handover: schedules.delayed(made, 1)


def frozen_windows(
  options: Ffdapt, blocks: int
) -> Callable[[Handover], Schedule]:
  """All but a window of each client."""
  # Refused here where it is, before anything is compiled.
  windows.frozen_windows(np.zeros(0, int), blocks, options.share, options.most)

  def made(handover: Handover) -> Schedule:
    found = windows.frozen_windows(
      handover.sizes, blocks, options.share, options.most
    )
    return schedules.delayed(found, 1)

  return made


def federated(setting: Setting, state: str, alike: bool = True) -> Algorithm:
  """Training of all weights, with what `--client.state` says of optimizers;
  how far clients move and, where all train the same blocks, how `alike` is
  measured."""
  if setting.residual:
    measured = measures.with_drift(setting.aggregator, alike)
    setting = setting._replace(aggregator=measured)
  made = full.full_model(setting)
  kinds = {
    'kept': inner_state.kept,
    'averaged': inner_state.averaged,
  }
  return kinds[state](made) if state in kinds else made


def slots(state: str) -> dict[str, int]:
  """What of the simulation's options is other: moments that clients keep are
  counted with what is theirs, and not once more with what trains."""
  return {'slots': 0} if state == 'kept' else {}


def of_server(steps: int, batch_size: int) -> tuple[int, dict[str, Any]]:
  """(rounds, options) of a stage in which the server alone takes so many
  steps: see `Stage.central`."""
  each = min(steps, PER_ROUND)
  return -(-steps // each), {
    'cohort': 1,
    'sampling': 'fixed',
    'cap': 0,
    'groups': 1,
    'dropout': 0.0,
    'steps': each,
    'total': steps,
    'batch_size': batch_size,
    'weights': 'rows',
    'slots': 0,  # the moments are counted with what the server holds
  }


def _adaptation(builder: Builder, alike: bool = True) -> Algorithm:
  """The algorithm of FDAPT, as a stage of its own."""
  config = builder.config
  builder.check_float32('trains all weights')
  setting = builder.setting(state=True)
  made = federated(setting, config.client.state, alike)
  return made._replace(name=config.algorithm.name)


def _fdapt(builder: Builder) -> list[Stage]:
  made = dense(builder.backbone.blocks)
  own = slots(builder.config.client.state)
  algorithm = _adaptation(builder)
  return [Stage('global', algorithm, builder.rounds, made, local=own)]


def _ffdapt(builder: Builder) -> list[Stage]:
  made = frozen_windows(builder.own, builder.backbone.blocks)
  if builder.config.client.state != 'reset':
    raise ValueError(
      f'--client.state={builder.config.client.state} does not go with '
      '--algorithm.name=ffdapt: clients train other blocks in each round. '
      'Leave it out.'
    )
  algorithm = _adaptation(builder, alike=False)
  return [Stage('global', algorithm, builder.rounds, made)]


STAGES = {'fdapt': _fdapt, 'ffdapt': _ffdapt}
