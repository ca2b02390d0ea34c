"""What a run may tell of its clients."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.fields import opt

NONE, CENTRAL, LOCAL, EXAMPLE = 'none', 'central', 'local', 'example'
DISTRIBUTED = 'distributed'


# What an option is looked at with, where that is not mode=central alone.
_ANY = '--privacy.mode=central, distributed, local or example'
_MESSAGES = '--privacy.mode=central, distributed or local'
_ADAPTIVE = '--privacy.clipping=adaptive'
NEEDS = {
  'clip': _ANY,
  'noise': _ANY,
  'delta': _ANY,
  'accountant': _ANY,
  'epsilon': _MESSAGES,
  'gate_clip': _MESSAGES,
  'batch_cap': '--privacy.mode=example',
  'quantile': _ADAPTIVE,
  'clip_rate': _ADAPTIVE,
  'bit_noise': _ADAPTIVE,
}


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
  mode: str = opt(
    NONE,
    'differential privacy: central (of clients; the server adds noise to the '
    'clipped sum), distributed (of clients; each adds a part of the noise, and '
    'a secure sum shows no part alone), local (of clients; each adds noise to '
    'its own message), example (of rows; clients clip the gradient of each row '
    'and add noise to every step)',
    choices=(NONE, CENTRAL, DISTRIBUTED, LOCAL, EXAMPLE),
  )
  clip: float = opt(
    1.0,
    "C, the largest L2 norm of a client's message, or of a row's gradient",
    above=0.0,
    high=1e9,
  )
  gate_clip: float = opt(
    0.0,
    "C of FedMS's second stage, where the gate is what is sent (0: "
    'privacy.clip)',
    low=0.0,
    high=1e9,
  )
  noise: float = opt(
    0.0,
    'z, noise multiplier of a round: the standard deviation over C, of all '
    'that is released together (0: as privacy.epsilon asks)',
    low=0.0,
    high=1e4,
  )
  epsilon: float = opt(
    0.0,
    'the epsilon of the whole run, for which the noise is found (0: that of '
    'privacy.noise)',
    low=0.0,
    high=1e4,
  )
  batch_cap: int = opt(
    0,
    'example: most rows of a step, of which each comes by chance (0: six '
    'standard deviations over client.batch_size)',
    low=0,
    high=1 << 20,
  )
  delta: float = opt(
    0.0,
    'delta (0: N^-1.1, of N clients or rows of a client)',
    low=0.0,
    high=1.0,
  )
  accountant: str = opt(
    'pld',
    'how epsilon is computed: by distributions of the privacy loss, or by '
    'Renyi divergences',
    choices=('pld', 'rdp'),
  )
  split: str = opt(
    '',
    'shares of the stages of the sum of 1 / z^2: 0.8,0.2 (empty: the same z '
    'in all rounds)',
  )
  clipping: str = opt(
    'fixed',
    'whether C stays, or follows a quantile of the norms',
    choices=('fixed', 'adaptive'),
  )
  quantile: float = opt(
    0.5,
    'adaptive: share of the messages that C leaves as they are',
    low=0.0,
    high=1.0,
  )
  clip_rate: float = opt(
    0.2, 'adaptive: how fast log C follows', above=0.0, high=10.0
  )
  bit_noise: float = opt(
    0.0,
    'adaptive: standard deviation of the noise of the number of messages '
    'within C (0: a twentieth of the clients of a round, or z if that is more)',
    low=0.0,
    high=1e9,
  )
  score_noise: float = opt(
    0.0,
    'for a schedule that watches a score: standard deviation of the noise of '
    'the sum of scores (0: no score is released)',
    low=0.0,
    high=1e9,
  )
  masks: str = opt(
    'public',
    'whether everybody may know which blocks a client trains, as follows from '
    'its number, or the number of those that did is noised',
    choices=('public', 'private'),
  )
  count_noise: float = opt(
    0.0,
    'private masks: standard deviation of the noise of the number of clients '
    'that trained a block',
    low=0.0,
    high=1e9,
  )
  bands: int = opt(
    1,
    'rounds over which noise is correlated, so that its sum stays small '
    '(DP-FTRL by banded matrices); at most cohort.groups',
    low=1,
    high=64,
  )
  population: int = opt(
    0,
    'simulate this population: epsilon is that of so many clients, and noise '
    'is scaled down to cohort.size (0: as it is)',
    low=0,
    high=1 << 40,
  )
  population_cohort: int = opt(
    0, 'clients per round of privacy.population', low=0, high=1 << 40
  )

  @property
  def on(self) -> bool:
    """Whether a run is private at all."""
    return self.mode != NONE

  def check(self) -> None:
    """Raises `ValueError` for options that would not be looked at."""
    self._check_used()
    if self.mode == DISTRIBUTED and self.accountant != 'rdp':
      raise ValueError(
        f'--privacy.mode=distributed does not go with --privacy.accountant='
        f'{self.accountant}: of its discrete noise Renyi divergences alone are '
        'known; allowed: rdp. Set it.'
      )
    if self.noise and self.epsilon:
      raise ValueError(
        f'--privacy.noise={self.noise:g} does not go with --privacy.epsilon='
        f'{self.epsilon:g}: one follows from the other. Leave one of them out.'
      )
    if bool(self.population) != bool(self.population_cohort):
      raise ValueError(
        f'--privacy.population={self.population} and '
        f'--privacy.population_cohort={self.population_cohort} belong '
        'together. Give both or none.'
      )
    if (self.masks == 'private') != (self.count_noise > 0):
      raise ValueError(
        f'--privacy.count_noise={self.count_noise:g} does not go with '
        f'--privacy.masks={self.masks}; allowed: more than 0 for private '
        'masks, and 0 for public ones.'
      )

  def _check_used(self) -> None:
    wanted = {
      'clip': self.on,
      'gate_clip': self.mode in (CENTRAL, DISTRIBUTED, LOCAL),
      'batch_cap': self.mode == EXAMPLE,
      'noise': self.on,
      'epsilon': self.mode in (CENTRAL, DISTRIBUTED, LOCAL),
      'delta': self.on,
      'accountant': self.on,
      'quantile': self.clipping == 'adaptive',
      'clip_rate': self.clipping == 'adaptive',
      'bit_noise': self.clipping == 'adaptive',
    }
    central = self.mode == CENTRAL
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      used = field.name == 'mode' or wanted.get(field.name, central)
      if value != field.default and not used:
        needs = NEEDS.get(field.name, '--privacy.mode=central')
        raise ValueError(
          f'--privacy.{field.name}={value} does nothing here: it needs {needs}'
          '. Leave it out, or set that.'
        )
    if self.clipping == 'adaptive' and not central:
      raise ValueError(
        '--privacy.clipping=adaptive does nothing here: it needs '
        '--privacy.mode=central. Leave it out, or set that.'
      )

  @property
  def shares(self) -> tuple[float, ...]:
    """Shares of the stages; () if none are given.

    Raises:
      ValueError: they are no shares.
    """
    try:
      found = tuple(float(x) for x in self.split.split(',') if x.strip())
      if self.split and not found:
        raise ValueError
      if found and not (
        all(x >= 0 for x in found) and abs(sum(found) - 1) < 1e-6
      ):
        raise ValueError
    except ValueError:
      raise ValueError(
        f'--privacy.split={self.split!r} is no list of shares; allowed: '
        'numbers from 0 on with the sum 1, such as 0.8,0.2.'
      ) from None
    return found
