"""Time from flags: the devices of clients, who reports when, who is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedms_jax.channel import staleness
from fedms_jax.core.contract import Channel
from fedms_jax.core.types import Federation
from fedms_jax.data import cohorts
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.time import (
  ALWAYS,
  BUFFER,
  DIURNAL,
  MIX,
  NONE,
  OORT,
  POWER,
  UNIFORM,
  WAIT,
  TimeConfig,
)
from fedms_jax.simulation.state import Stage
from fedms_jax.systems import availability, selection
from fedms_jax.systems import devices as device
from fedms_jax.systems.arrivals import Arrivals
from fedms_jax.systems.buffered import Buffered, buffered
from fedms_jax.systems.devices import Devices
from fedms_jax.systems.waiting import Waiting, waiting

_BYTES = 1e6 / 8  # of a megabit


def live(config: Config) -> bool:
  """Whether a run has a clock, or chooses whom it asks."""
  return config.time.on or config.select.name != UNIFORM


def timed(
  config: Config, data: Federation, stages: Sequence[Stage]
) -> list[Stage]:
  """The stages with who reports when.

  Raises:
    ValueError: the flags do not go together, or a file is none.
  """
  if not live(config):
    return list(stages)
  check(config, stages)
  which = devices(config, data.train.num_clients)
  return [
    stage._replace(arrivals=_arrivals(config, data, number, which))
    for number, stage in enumerate(stages)
  ]


def _arrivals(
  config: Config, data: Federation, stage: int, which: Devices
) -> Arrivals:
  t, size = config.time, config.cohort.size
  select = _selection(config, data, stage)
  share = config.cohort.dropout

  def gone(step: int, ids: np.ndarray) -> np.ndarray:
    return cohorts.lost(config.seed, stage, step, ids, share)

  lost = gone if share else None
  if t.late_reports:
    buffer = 1 if t.policy == MIX else t.buffer or size
    how = Buffered(buffer, t.concurrency or size, t.late)
    return buffered(how, which, select, lost)
  deadline = t.deadline or math.inf
  how = Waiting(size, t.over, deadline, t.least, t.partial)
  return waiting(how, which, select, lost)


def _selection(config: Config, data: Federation, stage: int):
  s, clients = config.select, data.train.num_clients
  if s.name == UNIFORM:
    return selection.uniform(config.seed, stage, clients)
  rule = selection.oort(selection.Oort())
  if s.name == POWER:
    some = s.candidates or 2 * config.cohort.size
    rule = selection.power_of_choice(data.train.sizes(), some)
  return selection.by(config.seed, stage, clients, rule)


def devices(config: Config, clients: int) -> Devices:
  """The devices of so many clients.

  Raises:
    ValueError: a file is none of devices, or of availability.
  """
  t = config.time
  if t.policy == NONE:
    return device.instant(clients)
  if t.devices:
    found = device.table(t.devices)
    made = device.of_table(found, clients, t.reference_gflops * 1e9)
  else:
    made = device.lognormal(
      clients,
      config.seed,
      speed=t.gflops * 1e9,
      down=t.down_mbps * _BYTES,
      up=t.up_mbps * _BYTES,
      speed_sigma=t.gflops_sigma,
      bandwidth_sigma=t.mbps_sigma,
    )
  if t.availability == ALWAYS:
    return made
  if t.availability == DIURNAL:
    when = availability.diurnal(clients, config.seed)
  else:
    when = availability.of_fedscale(device.table(t.availability), clients)
  return made._replace(availability=when)


def discount(t: TimeConfig) -> staleness.Discount:
  """What a late report weighs."""
  usual = {'poly': 0.5, 'hinge': 10.0}.get(t.discount, 0.0)
  return staleness.Discount(t.discount, t.power or usual, t.grace)


def channel(config: Config) -> list[Channel]:
  """The channel's member for late reports; none where there are none, or where
  the server weighs them itself."""
  t = config.time
  if t.policy != BUFFER or t.discount == 'constant':
    return []
  return [staleness.discounted(discount(t), t.normalize)]


def check(config: Config, stages: Sequence[Stage]) -> None:
  """Refuses what would change numbers in a way that nobody has thought of.

  Raises:
    ValueError: it names the flag.
  """
  t = config.time
  said = f'--time.policy={t.policy}'
  if not t.on:
    said = f'--select.name={config.select.name}'
  c, s, name = config.cohort, config.schedule, config.algorithm.name
  central = any(stage.central for stage in stages)
  wrong = {
    f'--privacy.mode={config.privacy.mode}': (
      config.privacy.on, 'its accounts assume that the sampler alone decides '
      'who reports; allowed: none'
    ),
    f'--cohort.sampling={c.sampling}': (
      c.sampling != 'fixed', 'it draws as many clients as can begin; allowed: '
      'fixed'
    ),
    f'--stages={config.stages}': (
      config.stages, 'its phases have no devices'
    ),
    f'--schedule.order={s.order}': (
      s.order == 'f3ocus', 'it chooses for a whole cohort by what its clients '
      'find; allowed: any other'
    ),
    f'--algorithm.name={name}': (
      name == 'ffdapt' or central, 'its server trains by itself, and has no '
      'device' if central else 'its windows are placed by whole cohorts'
    ),
  }  # fmt: skip
  _refuse(said, wrong)
  if config.select.name == OORT and not t.on:
    raise ValueError(
      f'{said} chooses by the time that clients take, and --time.policy=none '
      f'has no clock; allowed: {WAIT}, {BUFFER}, {MIX}. Set one.'
    )
  if t.late_reports:
    _check_late(config, stages, said)


def _check_late(config: Config, stages: Sequence[Stage], said: str) -> None:
  """Refuses what does not go with reports of earlier models."""
  t, name, clients = config.time, config.algorithm.name, config.partition
  apart = any(s.algorithm.server.reduction == 'stack' for s in stages)
  own = config.server.aggregator == 'mean'
  flag = f'--algorithm.name={name}' if own else (
    f'--server.aggregator={config.server.aggregator}'
  )  # fmt: skip
  many = max(t.concurrency, t.buffer)
  most = clients.num_clients
  _refuse(
    said,
    {
      flag: (
        apart, 'its server compares or rewrites whole models, and reports are '
        'of different ones; allowed: sums of updates'
      ),
      f'--client.state={config.client.state}': (
        config.client.state == 'averaged', 'optimizers would be averaged that '
        'are of different models; allowed: reset, kept'
      ),
      f'--time.concurrency={t.concurrency} and --time.buffer={t.buffer}': (
        many > most, f'a client is in flight once; allowed: at most {most}, '
        'all clients'
      ),
    },
  )  # fmt: skip


def _refuse(said: str, wrong) -> None:
  for flag, (found, why) in wrong.items():
    if found:
      raise ValueError(f'{said} does not go with {flag}: {why}. Change one.')
