"""What malicious clients of a run do."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.fields import opt

NONE = 'none'
DATA = ('label_flip', 'backdoor')
SCALED = ('sign_flip', 'gaussian', 'replacement', 'alie', 'ipm')
FITTED = ('min_max', 'min_sum')
UPDATES = (*SCALED, *FITTED)
# Which kinds look at an option, where that is not any attack.
_KINDS = {
  'share': DATA,
  'flip': ('label_flip',),
  'target': ('backdoor',),
  'trigger': ('backdoor',),
  'token': ('backdoor',),
  'scale': SCALED,
  'bound': ('replacement',),
  'direction': FITTED,
}


@dataclasses.dataclass(frozen=True)
class AttackConfig:
  data: str = opt(
    NONE,
    'what malicious clients train on: rows with wrong labels, or rows with a '
    'trigger that they want to be taken for a class',
    choices=(NONE, *DATA),
  )
  update: str = opt(
    NONE,
    'what malicious clients send in place of their update u: -scale u, noise, '
    'scale u (replacement), or, of the mean m and the deviation s of what '
    'honest clients send, m - scale s (alie), -scale m (ipm), or as far off as '
    'honest ones are from each other (min_max, min_sum)',
    choices=(NONE, *UPDATES),
  )
  fraction: float = opt(
    0.2,
    'share of the clients that is malicious, the same ones in all attacks',
    low=0.0,
    high=1.0,
  )
  start: int = opt(
    0, 'first round of the run with the attack', low=0, high=1_000_000_000
  )
  stop: int = opt(
    0, 'first round without it again (0: none)', low=0, high=1_000_000_000
  )
  share: float = opt(
    0.5,
    "share of a malicious client's rows that is poisoned; with attack.fraction="
    '1 a few rows of everybody',
    above=0.0,
    high=1.0,
  )
  flip: str = opt(
    'mirror',
    'label_flip: label y becomes C - 1 - y, or the next one',
    choices=('mirror', 'next'),
  )
  target: int = opt(
    0, 'backdoor: number of the class that is aimed at', low=0, high=1 << 20
  )
  trigger: int = opt(
    3, 'backdoor: side of the white square, in pixels', low=1, high=1 << 12
  )
  token: int = opt(
    -1,
    'backdoor of texts: number of the token that is the trigger',
    low=-1,
    high=1 << 30,
  )
  scale: float = opt(
    0.0,
    'of attack.update (0: replacement, cohort.size / server.learning_rate; '
    'alie, by the number of clients; others, 1)',
    low=0.0,
    high=1e9,
  )
  bound: float = opt(
    0.0,
    'replacement: largest L2 norm of what is sent (0: any)',
    low=0.0,
    high=1e9,
  )
  direction: str = opt(
    'std',
    'min_max and min_sum: where to, from the mean m: -s, -m / ||m|| (unit) or '
    '-sign(m)',
    choices=('std', 'unit', 'sign'),
  )

  @property
  def on(self) -> bool:
    """Whether there is an attack at all."""
    return self.data != NONE or self.update != NONE

  def check(self) -> None:
    """Raises `ValueError` for options that would not be looked at."""
    chosen = {self.data, self.update} - {NONE}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name in ('data', 'update') or value == field.default:
        continue
      kinds = _KINDS.get(field.name, (*DATA, *UPDATES))
      if not chosen & set(kinds):
        flag = 'data' if set(kinds) <= set(DATA) else 'update'
        raise ValueError(
          f'--attack.{field.name}={value} does nothing here: it needs '
          f'--attack.{flag}={" or ".join(kinds)}. Leave it out, or set that.'
        )
    if self.stop and self.stop <= self.start:
      raise ValueError(
        f'--attack.stop={self.stop} is no later than --attack.start='
        f'{self.start}; allowed: 0, or more than that. Raise it.'
      )
