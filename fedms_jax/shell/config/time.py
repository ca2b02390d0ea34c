"""What a run may be told of time, and of who is asked to take part."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.fields import opt

NONE, WAIT, BUFFER, MIX = 'none', 'synchronous', 'fedbuff', 'fedasync'
ALWAYS, DIURNAL = 'always', 'diurnal'
UNIFORM, POWER, OORT = 'uniform', 'power_of_choice', 'oort'
_MOST = 1e15

# By option, the policies that look at it; the others are of all with a clock.
_POLICIES = {
  'over': (WAIT,),
  'deadline': (WAIT,),
  'least': (WAIT,),
  'partial': (WAIT,),
  'buffer': (BUFFER,),
  'concurrency': (BUFFER, MIX),
  'discount': (BUFFER, MIX),
  'power': (BUFFER, MIX),
  'grace': (BUFFER, MIX),
  'late': (BUFFER, MIX),
  'normalize': (BUFFER,),
  'mixing': (MIX,),
}


@dataclasses.dataclass(frozen=True)
class TimeConfig:
  policy: str = opt(
    NONE,
    'whom the server waits for: none (rounds have no clock), synchronous (the '
    'cohort, or as much of it as time.over and time.deadline say), fedbuff (it '
    'steps when time.buffer reports have come), fedasync (at each report, by '
    'mixing the model in)',
    choices=(NONE, WAIT, BUFFER, MIX),
  )
  over: float = opt(
    1.0,
    'synchronous: times cohort.size clients begin, and the first cohort.size '
    'that report count',
    low=1.0,
    high=100.0,
  )
  deadline: float = opt(
    0.0,
    'synchronous: virtual seconds after which nobody is waited for (0: none)',
    low=0.0,
    high=_MOST,
  )
  least: float = opt(
    0.0,
    'synchronous: share of cohort.size that must meet the deadline, or else '
    'the round fails and changes nothing',
    low=0.0,
    high=1.0,
  )
  partial: bool = opt(
    False,
    'synchronous: whoever would miss the deadline takes as many local steps as '
    'there is time for',
  )
  buffer: int = opt(
    0, 'fedbuff: reports of a step (0: cohort.size)', low=0, high=1 << 20
  )
  concurrency: int = opt(
    0,
    'fedbuff, fedasync: clients in flight (0: cohort.size)',
    low=0,
    high=1 << 20,
  )
  discount: str = opt(
    'poly',
    'fedbuff, fedasync: what a report weighs that is tau server steps old: '
    'constant (1), poly ((1 + tau)^-power), hinge (1 up to time.grace, then '
    '1 / (power (tau - grace) + 1))',
    choices=('constant', 'poly', 'hinge'),
  )
  power: float = opt(
    0.0,
    'a of time.discount (0: 0.5 of poly, 10 of hinge)',
    low=0.0,
    high=1e6,
  )
  grace: float = opt(4.0, 'b of time.discount=hinge', low=0.0, high=1e6)
  late: int = opt(
    -1,
    'fedbuff, fedasync: server steps that a report may be old; staler ones are '
    'thrown away (-1: any)',
    low=-1,
    high=1 << 20,
  )
  normalize: str = opt(
    'count',
    'fedbuff: what the sum of discounted updates is divided by: count (as if '
    'none were discounted), weight (the discounts, too)',
    choices=('count', 'weight'),
  )
  mixing: float = opt(
    0.6, 'fedasync: alpha, what a fresh model weighs', above=0.0, high=1.0
  )
  devices: str = opt(
    '',
    "file of clients' devices: JSON or JSON lines of {id, speed, down, up} in "
    "FLOP and bytes per second, or FedScale's (empty: lognormal ones, by the "
    'medians below)',
  )
  reference_gflops: float = opt(
    0.0,
    "GFLOPs of one example's forward pass in the model that FedScale's file "
    'was measured with',
    low=0.0,
    high=_MOST,
  )
  gflops: float = opt(
    1.0, 'median GFLOP per second of a device', above=0.0, high=_MOST
  )
  gflops_sigma: float = opt(
    0.6, 'lognormal sigma of the speeds', low=0.0, high=10.0
  )
  down_mbps: float = opt(
    10.0, 'median Mbit per second that clients receive', above=0.0, high=_MOST
  )
  up_mbps: float = opt(
    2.0, 'median Mbit per second that clients send', above=0.0, high=_MOST
  )
  mbps_sigma: float = opt(
    1.0, 'lognormal sigma of the bandwidths', low=0.0, high=10.0
  )
  availability: str = opt(
    ALWAYS,
    'when clients are online: always, diurnal (weeks of on and off, made by '
    "chance, more of it at night), or a file of FedScale's traces",
  )

  def check(self) -> None:
    """Raises `ValueError` for options that do nothing."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name == 'policy' or value == field.default:
        continue
      policies = _POLICIES.get(field.name, (WAIT, BUFFER, MIX))
      if self.policy not in policies:
        raise ValueError(
          f'--time.{field.name}={value} does nothing here: it needs '
          f'--time.policy={" or ".join(policies)}. Leave it out, or set that.'
        )
    for name in ('least', 'partial'):
      if getattr(self, name) and not self.deadline:
        raise ValueError(
          f'--time.{name}={getattr(self, name)} does nothing here: it needs a '
          '--time.deadline. Leave it out, or set that.'
        )
    drawn = ('gflops', 'gflops_sigma', 'down_mbps', 'up_mbps', 'mbps_sigma')
    self._check_devices(drawn)
    if self.discount == 'constant' and self.power:
      raise ValueError(
        f'--time.power={self.power:g} does nothing with '
        '--time.discount=constant. Leave it out.'
      )
    if self.discount != 'hinge' and self.grace != 4.0:
      raise ValueError(
        f'--time.grace={self.grace:g} does nothing here: it needs '
        '--time.discount=hinge. Leave it out, or set that.'
      )

  def _check_devices(self, drawn: tuple[str, ...]) -> None:
    """drawn: options of devices that are drawn."""
    changed = [
      field.name
      for field in dataclasses.fields(self)
      if field.name in drawn and getattr(self, field.name) != field.default
    ]
    if self.devices and changed:
      name = changed[0]
      raise ValueError(
        f'--time.{name}={getattr(self, name):g} is of devices that are drawn; '
        f'got --time.devices={self.devices}. Leave one of them out.'
      )
    if self.reference_gflops and not self.devices:
      raise ValueError(
        f'--time.reference_gflops={self.reference_gflops:g} does nothing here: '
        'it needs --time.devices. Leave it out, or set that.'
      )

  @property
  def on(self) -> bool:
    """Whether rounds have a clock."""
    return self.policy != NONE

  @property
  def late_reports(self) -> bool:
    """Whether reports of earlier models are taken."""
    return self.policy in (BUFFER, MIX)


@dataclasses.dataclass(frozen=True)
class SelectConfig:
  name: str = opt(
    UNIFORM,
    'who is asked to take part: uniform (as cohort.sampling says), '
    'power_of_choice (of a few candidates those whose last reported loss is '
    'largest), oort (by loss and speed, some by chance)',
    choices=(UNIFORM, POWER, OORT),
  )
  candidates: int = opt(
    0,
    'power_of_choice: candidates of a cohort (0: twice as many as are wanted)',
    low=0,
    high=1 << 30,
  )

  def check(self) -> None:
    """Raises `ValueError` for options that do nothing."""
    if self.candidates and self.name != POWER:
      raise ValueError(
        f'--select.candidates={self.candidates} does nothing here: it needs '
        f'--select.name={POWER}. Leave it out, or set that.'
      )
