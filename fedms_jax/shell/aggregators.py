"""How updates are merged, from flags."""

from __future__ import annotations

import math

from fedms_jax.server import (
  averaged,
  foolsgold,
  mixing,
  robust,
  robust_means,
)
from fedms_jax.shell import plugged, timing
from fedms_jax.shell.config import Config, flatten
from fedms_jax.shell.config.time import MIX
from fedms_jax.shell.config.training import READ_BY


def aggregator(config: Config) -> averaged.Aggregator:
  """How updates are merged, for methods that leave it to the flags.

  Raises:
    ValueError: a cohort has too few clients for it.
  """
  s = config.server
  if config.time.policy == MIX:
    return _mixing(config)
  size = -(-config.cohort.size // s.bucket)  # of what is merged
  _check_used(config)
  _check_trim(config, size)
  _check_byzantine(config, size)
  made = {
    'mean': averaged.mean,
    'median': robust.median,
    'trimmed_mean': lambda: robust.trimmed_mean(s.trim),
    'krum': lambda: robust.krum(s.byzantine),
    'multi_krum': lambda: robust.multi_krum(s.byzantine, s.keep),
    'bulyan': lambda: robust.bulyan(s.byzantine),
    'norm_bound': lambda: robust_means.norm_bound(s.bound),
    'geometric_median': lambda: robust_means.geometric_median(s.passes),
    'centered_clip': lambda: robust_means.centered_clip(s.bound, s.passes),
    'flame': lambda: robust_means.flame(s.flame_noise),
    'foolsgold': lambda: foolsgold.foolsgold(config.partition.num_clients),
  }.get(s.aggregator)
  made = made() if made else plugged.aggregator(s.aggregator)
  return made if s.bucket == 1 else robust_means.bucketed(made, s.bucket)


def _mixing(config: Config) -> averaged.Aggregator:
  s = config.server
  if s.aggregator != 'mean' or s.bucket != 1:
    flag = f'aggregator={s.aggregator}'
    if s.aggregator == 'mean':
      flag = f'bucket={s.bucket}'
    raise ValueError(
      f'--time.policy={MIX} does not go with --server.{flag}: it mixes one '
      'model at a time. Leave it out.'
    )
  return mixing.mixing(config.time.mixing, timing.discount(config.time))


def _check_byzantine(config: Config, size: int) -> None:
  """Raises `ValueError` if too few are merged for so many bad ones."""
  s = config.server
  times = {'krum': 2, 'multi_krum': 2, 'bulyan': 4}.get(s.aggregator)
  if times is None or size >= times * s.byzantine + 3:
    return
  raise ValueError(
    f'--server.byzantine={s.byzantine} of --cohort.size={config.cohort.size}'
    f' is too many for {s.aggregator}, which needs {times * s.byzantine + 3} '
    f'{"clients" if s.bucket == 1 else "buckets"}. Raise --cohort.size, or '
    'lower --server.byzantine.'
  )


def _check_trim(config: Config, size: int) -> None:
  """Raises `ValueError` if a trimmed mean would leave nobody out."""
  s = config.server
  if s.aggregator != 'trimmed_mean' or int(s.trim * size + 1e-6) >= 1:
    return
  enough = math.ceil(1 / s.trim - 1e-6) * s.bucket
  most = flatten(Config)['server.trim'].metadata['high']
  least = f' or --server.trim to {1 / size:.2g}' if 1 / size <= most else ''
  raise ValueError(
    f'--server.trim={s.trim:g} of --cohort.size={config.cohort.size} leaves '
    f'nobody out at either end. Raise --cohort.size to {enough}{least}.'
  )


def _check_used(config: Config) -> None:
  """Raises `ValueError` for an option of other aggregators."""
  s, fields = config.server, flatten(Config)
  for name, readers in READ_BY.items():
    value = getattr(s, name)
    if value != fields[f'server.{name}'].default and (
      s.aggregator not in readers
    ):
      raise ValueError(
        f'--server.{name}={value} does nothing here: it needs '
        f'--server.aggregator={", ".join(readers)}. Leave it out, or set that.'
      )
  if s.keep > config.cohort.size:
    raise ValueError(
      f'--server.keep={s.keep} is more than --cohort.size={config.cohort.size}'
      '; allowed: at most that. Lower it.'
    )
