"""What does not go with codes and secure sums: what could not be added up, or
would not be what it is counted as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedms_jax.shell.config import Config
from fedms_jax.shell.config.privacy import CENTRAL, DISTRIBUTED, LOCAL
from fedms_jax.shell.config.time import UNIFORM
from fedms_jax.shell.privacy_rules import EACH, REFUSED
from fedms_jax.simulation.state import Stage

# Orders by which clients of one round train different blocks.
_APART = (*EACH, 'balanced', 'f3ocus')
# Methods whose messages have no range that is known before, and why.
_WIDE = {
  'fgl': 'its clients send sums over their rows, whose range is not known',
}


def check(config: Config, stages: Sequence[Stage]) -> None:
  """Refuses what does not go together.

  Raises:
    ValueError: it names the flag.
  """
  if config.privacy.mode == DISTRIBUTED and not config.secagg.on:
    raise ValueError(
      '--privacy.mode=distributed makes noise of parts that nobody may see '
      'alone, for which it needs --secagg.mode=masked or ideal. Set it.'
    )
  if config.secagg.on:
    _check_secure(config, stages)
  if config.compression.on:
    _check_codes(config, stages)


def _check_secure(config: Config, stages: Sequence[Stage]) -> None:
  """Refuses what no sum of hidden numbers serves."""
  c, name, s = config, config.algorithm.name, config.schedule
  said, refused = f'--secagg.mode={c.secagg.mode}', REFUSED | _WIDE
  weights = c.server.weights != 'equal' and not c.privacy.on
  _refuse(said, {
    f'--stages={c.stages}': (
      bool(c.stages), 'what its phases send has no such channel'
    ),
    f'--algorithm.name={name}': (name in refused, refused.get(name, '')),
    f'--server.aggregator={c.server.aggregator}': (
      c.server.aggregator != 'mean', 'it needs the messages apart'
    ),
    f'--server.weights={c.server.weights}': (
      weights and not c.secagg.max_weight, 'nobody knows the largest weight; '
      'set --secagg.max_weight, or --server.weights=equal'
    ),
    f'--secagg.max_weight={c.secagg.max_weight:g}': (
      bool(c.secagg.max_weight) and not weights, 'all clients weigh alike'
    ),
    f'--client.state={c.client.state}': (
      c.client.state == 'averaged', 'moments are of another range'
    ),
    f'--compression.up={c.compression.up}': (
      c.compression.up not in ('none', 'random_k'), 'codes of clients that '
      'differ in their scales, or places, have no sum; allowed: none, random_k'
    ),
    f'--schedule.budgets={s.budgets}': (
      bool(s.budgets), 'clients of a round must train the same blocks'
    ),
    f'--schedule.order={s.order}': (
      s.order in _APART, 'clients of a round must train the same blocks'
    ),
    f'--algorithm.name={name} ': (
      any(stage.algorithm.variant for stage in stages),
      'its clients of a round train different parts'
    ),
    f'--privacy.mode={c.privacy.mode}': (
      c.privacy.mode == LOCAL, 'noise of each client would be cut at the '
      'range; allowed: central, distributed, example'
    ),
    '--privacy.clipping=adaptive': (
      c.privacy.clipping == 'adaptive', 'the range of numbers would not follow '
      'the clip; allowed: fixed'
    ),
    f'--time.policy={c.time.policy}': (
      c.time.on, 'masks are dealt to the cohort that is sampled, all of one '
      'model'
    ),
    f'--select.name={c.select.name}': (
      c.select.name != UNIFORM, 'what clients report is hidden in the sum'
    ),
    f'--secagg.range={c.secagg.range:g}': (
      bool(c.secagg.range) and c.privacy.mode in (CENTRAL, DISTRIBUTED),
      'it is --privacy.clip'
    ),
  })  # fmt: skip


def _check_codes(config: Config, stages: Sequence[Stage]) -> None:
  """Refuses messages whose bytes would not be those of a code."""
  c, name, p = config, config.algorithm.name, config.privacy
  up = c.compression.up != 'none'
  said = f'--compression.up={c.compression.up}'
  if not up:
    said = f'--compression.down={c.compression.down}'
  apart = name in REFUSED or any(stage.algorithm.traffic for stage in stages)
  _refuse(said, {
    f'--stages={c.stages}': (
      bool(c.stages), 'what its phases send has no such channel'
    ),
    f'--algorithm.name={name}': (
      apart, 'its clients send something else than a change of the shared model'
    ),
    f'--privacy.mode={p.mode}': (
      up and p.mode in (LOCAL, DISTRIBUTED), 'noise that clients add to all '
      'numbers undoes a code; allowed: central, example'
    ),
    f'--time.policy={c.time.policy}': (
      c.compression.down != 'none' and c.time.late_reports, 'clients that '
      'began with an earlier model got that one coded; allowed: '
      '--compression.up alone'
    ),
  })  # fmt: skip
  if c.compression.entropy:
    _refuse('--compression.entropy', {
      f'--privacy.mode={p.mode}': (
        p.mode == CENTRAL, 'how many bits a client sends has no noise; '
        'allowed: none, example'
      ),
      f'--time.policy={c.time.policy}': (
        c.time.late_reports, 'what is said of late reports would be discounted '
        'as they are; allowed: none, synchronous'
      ),
    })  # fmt: skip
  if not c.compression.feedback:
    return
  _refuse('--compression.feedback', {
    f'--client.state={c.client.state}': (
      c.client.state != 'reset', 'clients keep one thing'
    ),
    f'--eval.adapt={c.eval.adapt}': (
      bool(c.eval.adapt), 'who adapts has nothing to send'
    ),
  })  # fmt: skip


def _refuse(said: str, problems: dict[str, tuple[Any, str]]) -> None:
  for flag, (wrong, why) in problems.items():
    if wrong:
      raise ValueError(
        f'{said} does not go with {flag.strip()}: {why}. Change one of them.'
      )
