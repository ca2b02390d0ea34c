"""What happens to messages on their way: codes, and secure sums."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.fields import opt

NONE = 'none'
_CODES = ('uniform', 'rotated', 'drive', 'terngrad', 'sign', 'top_k')
UP, DOWN = (NONE, *_CODES, 'random_k'), (NONE, *_CODES)
# Codes of whose numbers some occur more often than others.
ENTROPIC = ('uniform', 'rotated', 'terngrad', 'sign', 'top_k')
BIASED = ('top_k', 'random_k', 'sign', 'terngrad')


@dataclasses.dataclass(frozen=True)
class CompressionConfig:
  up: str = opt(
    NONE,
    'how clients code what they send: uniform (stochastic rounding to '
    'compression.levels), rotated (so, after a random rotation), drive, '
    'terngrad, sign, top_k or random_k (compression.share of the numbers)',
    choices=UP,
  )
  down: str = opt(
    NONE,
    'how the server codes what clients get, as the change since the stage '
    'began',
    choices=DOWN,
  )
  levels: int = opt(
    256, 'uniform, rotated: levels of a number', low=2, high=1 << 24
  )
  share: float = opt(
    0.01,
    'top_k, random_k: share of the numbers that are sent',
    above=0.0,
    high=1.0,
  )
  feedback: bool = opt(
    False,
    'clients keep what a code has lost, and add it to what they send next',
  )
  decay: float = opt(
    1.0,
    'feedback: times what was lost before (under 1: what is old counts less)',
    low=0.0,
    high=1.0,
  )
  entropy: bool = opt(
    False,
    'rounds tell what clients would send if an entropy coder followed their '
    'code',
  )

  @property
  def on(self) -> bool:
    """Whether anything is coded."""
    return (self.up, self.down) != (NONE, NONE)

  def check(self) -> None:
    """Raises `ValueError` for options that would not be looked at."""
    both = {self.up, self.down}
    needs = {
      'levels': (both & {'uniform', 'rotated'}, 'up=uniform or rotated'),
      'share': (both & {'top_k', 'random_k'}, 'up=top_k or random_k'),
      'feedback': (self.up in BIASED, f'up={", ".join(BIASED)}'),
      'decay': (self.feedback, 'feedback'),
      'entropy': (
        self.up in ENTROPIC,
        f'up={", ".join(ENTROPIC)}',
      ),
    }
    for name, (used, what) in needs.items():
      _check_used(self, 'compression', name, bool(used), what)


@dataclasses.dataclass(frozen=True)
class SecaggConfig:
  mode: str = opt(
    NONE,
    'secure aggregation, by which the server sees sums alone: masked (messages '
    'get masks that cancel), ideal (the same numbers without the masks, which '
    'is quicker)',
    choices=(NONE, 'ideal', 'masked'),
  )
  bits: int = opt(
    0,
    'bits of a number of a client (0: 16, or 12 with --privacy.mode='
    'distributed)',
    low=0,
    high=31,
  )
  modulus: int = opt(
    0, 'bits of a number of the sum (0: as many as it needs)', low=0, high=32
  )
  range: float = opt(
    0.0,
    'largest change of a number; what is beyond is cut, and told as saturated '
    '(0: 1, or privacy.clip)',
    low=0.0,
    high=1e9,
  )
  max_weight: float = opt(
    0.0,
    'largest weight of a client in a mean (0: it needs --server.weights=equal)',
    low=0.0,
    high=1e9,
  )
  neighbors: int = opt(
    0,
    'other clients that a client shares secrets with (0: with all of a round, '
    'or of random ones with cohort.size - 1)',
    low=0,
    high=1 << 20,
  )
  threshold: int = opt(
    0,
    'of a client and its neighbors, how many must be left for the round to be '
    'opened (0: two thirds, or of cohorts of random size just over half)',
    low=0,
    high=1 << 20,
  )
  survivors: int = opt(
    0,
    'messages of a round that must come for it to be opened; with --privacy.'
    'mode=distributed they make all of the noise (0: as secagg.threshold says; '
    'distributed: two thirds of cohort.size)',
    low=0,
    high=1 << 20,
  )

  @property
  def on(self) -> bool:
    """Whether sums are secure."""
    return self.mode != NONE

  def check(self) -> None:
    """Raises `ValueError` for options that would not be looked at."""
    for field in dataclasses.fields(self):
      if field.name != 'mode':
        _check_used(self, 'secagg', field.name, self.on, 'mode=masked or ideal')
    if self.bits == 1:
      raise ValueError(
        '--secagg.bits=1 leaves a sign and no number; allowed: 2 to 31, or 0.'
      )


def _check_used(config, section: str, name: str, used: bool, what: str) -> None:
  value = getattr(config, name)
  default = {f.name: f.default for f in dataclasses.fields(config)}[name]
  if value != default and not used:
    raise ValueError(
      f'--{section}.{name}={value} does nothing here: it needs --{section}.'
      f'{what}. Leave it out, or set that.'
    )
