"""Differential privacy from flags: what is released, and at which noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.channel import privacy as channels
from fedms_jax.core.contract import Channel
from fedms_jax.core.types import Sampling
from fedms_jax.data import sampling as samplers
from fedms_jax.shell import privacy_rules
from fedms_jax.shell.config import Config
from fedms_jax.shell.config.privacy import (
  CENTRAL,
  DISTRIBUTED,
  EXAMPLE,
  LOCAL,
)
from fedms_jax.simulation.state import Guard, Stage
from fedms_jax.systems import banded
from fedms_jax.systems import privacy as accounts

_BITS = 0.05  # of a round's clients: the usual noise of adaptive clips


class Plan(NamedTuple):
  """The privacy of a run. how: its sampler. stated: the sampler that epsilon
  is of. rounds, noise: by stage, with z of all that a round releases. scale:
  of the noise, for a stated population. expected: clients that report. most:
  blocks that a client may train."""

  how: Sampling
  stated: Sampling
  rounds: tuple[int, ...]
  noise: tuple[float, ...]
  delta: float
  scale: float
  expected: float
  most: int


def plan(config: Config, stages: Sequence[Stage]) -> Plan | None:
  """What a run's privacy costs; None: it is not private.

  Raises:
    ValueError: the flags do not go together.
  """
  if not config.privacy.on:
    return None
  privacy_rules.check(config, stages)
  blocks = stages[0].algorithm.backbone.blocks
  return planned(config, tuple(stage.rounds for stage in stages), blocks)


def planned(config: Config, rounds: tuple[int, ...], blocks: int) -> Plan:
  """The plan of stages of so many rounds, of a model of so many blocks."""
  accounts.library()  # or the run would end without what it was for
  p, c = config.privacy, config.cohort
  clients = config.partition.num_clients
  how = samplers.sampling(c.sampling, clients, c.size, c.cap, c.groups)
  stated, scale = _stated(config, how)
  delta = p.delta or accounts.usual_delta(stated.clients)
  if p.mode != EXAMPLE:  # where it is of rows, which are not known yet
    accounts.check_delta(delta, stated.clients)
  shares = _shares(config, rounds)

  def noises(base: float) -> tuple[float, ...]:
    return tuple(base * share for share in shares)

  base = p.noise
  if p.epsilon:
    base = accounts.noise_for(
      p.epsilon,
      delta,
      lambda z: ledger(config, stated, rounds, noises(z)),
      p.accountant,
    )
  expected = how.size * (1 - c.dropout)
  most = config.schedule.cap or blocks
  return Plan(how, stated, rounds, noises(base), delta, scale, expected, most)


def _stated(config: Config, how: Sampling) -> tuple[Sampling, float]:
  """(the sampler that epsilon is of, the scale of the noise)."""
  p, c = config.privacy, config.cohort
  if not p.population:
    return how, 1.0
  if how.kind not in ('fixed', 'poisson'):
    raise ValueError(
      f'--privacy.population={p.population} does not go with --cohort.sampling='
      f'{how.kind}; allowed: fixed, poisson. Change one of them.'
    )
  if not how.size <= p.population_cohort <= p.population:
    raise ValueError(
      f'--privacy.population_cohort={p.population_cohort} is not allowed; '
      f'allowed: --cohort.size={how.size} to --privacy.population='
      f'{p.population}. Raise it.'
    )
  stated = samplers.sampling(how.kind, p.population, p.population_cohort)
  return stated, c.size / p.population_cohort


def _shares(config: Config, rounds: tuple[int, ...]) -> list[float]:
  """By stage, its z over the one that would spend as much if all rounds had
  the same."""
  found, total = config.privacy.shares, sum(rounds)
  if not found:
    return [1.0] * len(rounds)
  said = f'--privacy.split={config.privacy.split}'
  if len(found) != len(rounds):
    raise ValueError(
      f'{said} has {len(found)} shares; allowed: {len(rounds)}, one for each '
      f'stage of --algorithm.name={config.algorithm.name}.'
    )
  for number, (share, count) in enumerate(zip(found, rounds, strict=True)):
    if (share > 0) != (count > 0):
      raise ValueError(
        f'{said} gives stage {number + 1} of {count} rounds the share '
        f'{share:g}; allowed: more than 0 for a stage with rounds, else 0.'
      )
  return [
    math.sqrt(n / (share * total)) if n else 1.0
    for share, n in zip(found, rounds, strict=True)
  ]


def ledger(config: Config, how: Sampling, rounds, noise) -> list[Any]:
  """What the stages will have released when they are done."""
  if config.privacy.mode == LOCAL:
    most = int(participations(config.seed, how, rounds).max())
    return [local_entry(noise[0], most)]
  if config.privacy.mode == DISTRIBUTED:
    most = int(participations(config.seed, how, rounds).max())
    return [distributed_entry(config, noise[0], most)]
  return [
    accounts.entry(stage, accounts.event(how, z), n, how.groups)
    for stage, (n, z) in enumerate(zip(rounds, noise, strict=True))
    if n
  ]


@functools.lru_cache(maxsize=4)
def participations(
  seed: int, how: Sampling, rounds: tuple[int, ...]
) -> np.ndarray:
  """How often each client is drawn in a run, [N]."""
  found = np.zeros(how.clients, int)
  for stage, count in enumerate(rounds):
    for number in range(count):
      found[samplers.sample(how, seed, stage, number)] += 1
  return found


def local_entry(noise: float, times: int) -> Any:
  """A client's messages: any one may be any other, so that the sensitivity is
  twice the clip."""
  event = {'kind': 'gaussian', 'noise': noise / 2}
  return accounts.entry(0, event, times)


def distributed_entry(config: Config, noise: float, times: int) -> Any:
  """A client's messages, each in a sum with discrete noise. The server knows
  whose they are, so that a sampler amplifies nothing."""
  levels = 2 ** (secagg_bits(config) - 1) - 1
  event = {'kind': 'skellam', 'noise': noise, 'levels': levels}
  return accounts.entry(0, event, times)


def secagg_bits(config: Config) -> int:
  """Bits of a number in a secure sum. Discrete noise has a table, which many
  bits would make long."""
  usual = 12 if config.privacy.mode == DISTRIBUTED else 16
  return config.secagg.bits or usual


def clip(config: Config, stage: int) -> float:
  """C of a stage."""
  p = config.privacy
  return p.gate_clip if stage and p.gate_clip else p.clip


def channel(config: Config, plan: Plan, stage: int) -> list[Channel]:
  """The channel of a stage; none where the steps are private already."""
  p, z = config.privacy, plan.noise[stage]
  if p.mode == EXAMPLE:
    return []
  most = clip(config, stage)
  if p.mode == LOCAL:
    return [channels.local(most, z)]
  if p.mode == DISTRIBUTED:  # the noise is in the secure sum
    return [channels.central(channels.Central(most, 0.0, scale=plan.scale))]
  adaptive = None
  if p.clipping == 'adaptive':
    bits = _bits(config, plan, stage)
    adaptive = channels.Adaptive(p.quantile, p.clip_rate, bits)
  bands = min(p.bands, max(plan.rounds[stage], 1))
  made = channels.central(
    channels.Central(
      clip=most,
      noise=values_noise(config, plan, stage),
      adaptive=adaptive,
      counts=p.count_noise,
      most=plan.most if p.masks == 'private' else 0,
      scale=plan.scale,
      coefficients=banded.coefficients(plan.rounds[stage], bands),
    )
  )
  return [made]


def _bits(config: Config, plan: Plan, stage: int) -> float:
  """The noise of adaptive clips: as arXiv 1905.03871 has it, but never so
  little that small cohorts leave nothing for the values; that is ours."""
  usual = max(_BITS * plan.expected / plan.scale, plan.noise[stage])
  return config.privacy.bit_noise or usual


def values_noise(config: Config, plan: Plan, stage: int) -> float:
  """z of the values of a round: what z of the whole round leaves when other
  parts of it have taken theirs."""
  p, z = config.privacy, plan.noise[stage]
  if not z:
    return 0.0
  parts = {}
  if p.clipping == 'adaptive':
    parts['privacy.bit_noise'] = 2 * _bits(config, plan, stage)
  if p.score_noise:
    parts['privacy.score_noise'] = p.score_noise
  if p.masks == 'private':
    parts['privacy.count_noise'] = p.count_noise / math.sqrt(plan.most)
  left = z**-2 - sum(part**-2 for part in parts.values())
  if left <= 0:
    name = min(parts, key=lambda name: parts[name])
    raise ValueError(
      f'--{name} releases so much that nothing is left of a noise multiplier '
      f'of {z:.4g} in stage {stage + 1}. Raise it.'
    )
  return left**-0.5


def guard(config: Config, plan: Plan, stage: int) -> Guard:
  """What counts what a stage tells."""
  p, s = config.privacy, config.schedule
  alike = not s.budgets and s.order not in privacy_rules.EACH

  def score(sums: np.ndarray, number: int) -> float:
    words = (config.seed, stage, number)
    std = p.score_noise * plan.scale
    return accounts.noisy_mean(sums, std, plan.expected, words)

  event = accounts.event(plan.stated, plan.noise[stage])
  line = accounts.entry(stage, event, 1, plan.stated.groups)

  def central(spent, ids, steps):
    del ids, steps
    return accounts.spend(spent or [], line)

  def each(spent, ids, steps):
    """Releases of each client: its messages, or its steps."""
    found = dict(spent or {})
    times = steps.tolist() if p.mode == EXAMPLE else [1] * len(ids)
    for i, n in zip(map(str, ids.tolist()), times, strict=True):
      found[i] = found.get(i, 0) + int(n)
    return found

  summed = p.mode in (CENTRAL, DISTRIBUTED)
  spend = central if p.mode == CENTRAL else each
  return Guard(
    plan.how.clients,
    plan.expected if summed else 0.0,
    alike,
    spend,
    score if p.score_noise else None,
  )
