"""What a run tells of its clients: differential privacy, accounted.

The sampler of the cohorts chooses the event of a round, nobody else does. What
was released is a ledger of events and how often they happened, as JSON, which
checkpoints hold; an epsilon is computed from it when somebody asks. The
accounting is that of the library dp-accounting, imported when it is needed.

Notation: z is the noise multiplier, the standard deviation of the noise over
the sensitivity of a sum to one client's part.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Sampling
from fedms_jax.systems import skellam

Json = Any
ACCOUNTANTS = ('pld', 'rdp')
# Steps of the grid of privacy losses; a coarser one, which stays an upper
# bound, where the losses are too large for a fine one.
_GRIDS = ((20.0, 1e-4), (200.0, 1e-3), (math.inf, 1e-2))
_NO_BOUND = 1e4  # of which nobody wants the digits


def library() -> Any:
  """The package dp_accounting.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import dp_accounting  # lazy: an extra
    import dp_accounting.pld
    import dp_accounting.rdp
  except ImportError:
    raise ValueError(
      'an epsilon needs the package dp-accounting, which is not installed. '
      "Run pip install 'fedms_jax[privacy]'."
    ) from None
  return dp_accounting


def version() -> str:
  """Name and version of the library."""
  from importlib import metadata  # lazy: only for what is printed

  return f'dp-accounting {metadata.version("dp-accounting")}'


def event(how: Sampling, noise: float) -> Json:
  """What a round releases of which the sum has Gaussian noise.

  With random cohorts neighbors differ by one client more, and the chance to be
  drawn amplifies the privacy (Abadi et al., arXiv 1607.00133, section 3.1);
  what a cap leaves out is accounted as a truncated batch. A cohort of always K
  of N clients has neighbors in which one client is replaced by another, which
  moves the sum twice as far: Poisson sampling at half of z bounds it. Without
  chance, or where groups take their turns, nothing is amplified.

  Args:
    how: the sampler.
    noise: z.
  """
  gaussian = {'kind': 'gaussian', 'noise': noise}
  if how.kind == 'min_separation' or how.chance >= 1:
    return gaussian
  if how.kind == 'fixed':
    return {'kind': 'poisson', 'chance': how.chance, 'noise': noise / 2}
  members = -(-how.clients // how.groups)
  if how.cap >= members:
    return {'kind': 'poisson', 'chance': how.chance, 'noise': noise}
  return {
    'kind': 'truncated',
    'chance': how.chance,
    'clients': members,
    'cap': how.cap,
    'noise': noise,
  }


def steps_event(rows: int, batch: int, cap: int, noise: float) -> Json:
  """What a local step releases of a client whose `rows` each come into it with
  the chance batch / rows, at most `cap` of them. noise: z."""
  if batch >= rows:
    return {'kind': 'gaussian', 'noise': noise}
  if cap >= rows:
    return {'kind': 'poisson', 'chance': batch / rows, 'noise': noise}
  return {
    'kind': 'truncated',
    'chance': batch / rows,
    'clients': rows,
    'cap': cap,
    'noise': noise,
  }


def neighbors(how: Sampling) -> str:
  """What two data sets that cannot be told apart differ in."""
  if how.kind == 'fixed' and how.chance < 1:
    return 'one client replaced by another'
  if how.kind in ('poisson', 'fixed'):
    return 'one client added or removed'
  return 'one client zeroed out'


def entry(stage: int, what: Json, rounds: int, every: int = 1) -> Json:
  """A line of the ledger: an event of so many rounds of a stage, of which one
  in `every` has any one client in it."""
  return {'stage': stage, 'event': what, 'rounds': rounds, 'every': every}


def spend(ledger: Sequence[Json], new: Json) -> list[Json]:
  """The ledger with a line more, added to the one of the same event."""
  out, found = [], False
  for line in ledger:
    same = all(line[k] == new[k] for k in ('stage', 'event', 'every'))
    if same and not found:
      line, found = line | {'rounds': line['rounds'] + new['rounds']}, True
    out.append(line)
  return out if found else [*out, new]


def epsilon(
  ledger: Sequence[Json], delta: float, accountant: str = 'pld'
) -> float:
  """The epsilon at `delta` of all that a ledger holds; inf: there is none.

  Args:
    ledger: of `entry`.
    delta: in (0, 1).
    accountant: 'pld', privacy loss distributions (arXiv 2106.02848), or 'rdp',
      Renyi divergences (arXiv 1702.07476), which leave out the cap of a cohort.
  """
  if accountant not in ACCOUNTANTS:
    raise ValueError(
      f'`accountant`={accountant!r} is none; allowed: {", ".join(ACCOUNTANTS)}.'
    )
  counts: dict[str, int] = {}
  for line in ledger:
    name = json.dumps(line['event'], sort_keys=True)
    times = -(-line['rounds'] // line['every'])
    counts[name] = counts.get(name, 0) + times
  spent = tuple(sorted((name, n) for name, n in counts.items() if n))
  return _epsilon(spent, delta, accountant)


@functools.lru_cache(maxsize=4096)
def _epsilon(spent, delta: float, accountant: str) -> float:
  if not spent:
    return 0.0
  events = [(json.loads(name), count) for name, count in spent]
  if any(e['noise'] <= 0 for e, _ in events):
    return math.inf
  if any(e['kind'] == 'skellam' for e, _ in events):
    return skellam.epsilon(events, delta)
  rdp = _rdp(events, delta)
  if accountant == 'rdp' or rdp > _NO_BOUND:
    return rdp
  return _pld(events, delta, next(grid for most, grid in _GRIDS if rdp <= most))


def _pld(events, delta: float, grid: float) -> float:
  dp = library()
  one = dp.pld.PLDAccountant(
    neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
    value_discretization_interval=grid,
  )
  for what, count in events:
    one.compose(_dp_event(what), count)
  return float(one.get_epsilon(delta))


def _rdp(events, delta: float) -> float:
  dp = library()
  one = dp.rdp.RdpAccountant(
    neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE
  )
  log = logging.getLogger('absl')
  before = log.level
  log.setLevel(logging.ERROR)  # of orders that do not converge, harmlessly
  try:
    for what, count in events:
      one.compose(_dp_event(_uncapped(what)), count)
    return float(one.get_epsilon(delta))
  finally:
    log.setLevel(before)


def _uncapped(what: Json) -> Json:
  """The event of cohorts without a cap."""
  capped = what['kind'] == 'truncated'
  return what | {'kind': 'poisson'} if capped else what


def _dp_event(what: Json) -> Any:
  """The library's own event."""
  dp, kind = library(), what['kind']
  gaussian = dp.GaussianDpEvent(what['noise'])
  if kind == 'gaussian':
    return gaussian
  if kind == 'poisson':
    return dp.PoissonSampledDpEvent(what['chance'], gaussian)
  return dp.dp_event.TruncatedSubsampledGaussianDpEvent(
    dataset_size=what['clients'],
    sampling_probability=what['chance'],
    truncated_batch_size=what['cap'],
    noise_multiplier=what['noise'],
  )


def usual_delta(units: int) -> float:
  """The delta that is taken for so many clients or rows: n^-1.1."""
  return max(units, 2) ** -1.1


def check_delta(delta: float, units: int, what: str = 'clients') -> None:
  """Raises `ValueError` for a delta with which a whole client may be told."""
  if not 0 < delta < 1 / units:
    raise ValueError(
      f'`delta`={delta:g} is not allowed for {units} {what}; allowed: more '
      f'than 0 and under 1/{units} = {1 / units:.3g}, or one of them may be '
      f'told whole. Lower it to {usual_delta(units):.2g}.'
    )


def noise_for(
  target: float,
  delta: float,
  ledger: Callable[[float], Sequence[Json]],
  accountant: str = 'pld',
) -> float:
  """The least z, to four digits, with which a ledger has at most an epsilon.

  Args:
    target: the epsilon.
    delta: see `epsilon`.
    ledger: z -> what is released.
    accountant: see `epsilon`.

  Raises:
    ValueError: no noise up to 1e4 is enough.
  """

  def of(noise: float, name: str) -> float:
    return epsilon(ledger(noise), delta, name)

  # Renyi divergences are quick, and bound the search for the other.
  low, high = 1e-2, 1e4
  if of(high, 'rdp') > target:
    raise ValueError(
      f'`target`={target:g} is out of reach at delta {delta:g}; allowed: more '
      f'than {of(high, "rdp"):.3g}.'
    )
  while high / low > 1.0005:
    middle = math.sqrt(low * high)
    low, high = (low, middle) if of(middle, 'rdp') <= target else (middle, high)
  if accountant == 'rdp':
    return _least(high, target, lambda z: of(z, 'rdp'))

  def uncapped(noise: float) -> float:
    """As good as with the cap, and three times as quick."""
    lines = [x | {'event': _uncapped(x['event'])} for x in ledger(noise)]
    return epsilon(lines, delta)

  found = _secant(high, target, uncapped)
  return _least(found, target, lambda z: of(z, 'pld'))


def _secant(start: float, target: float, of: Callable) -> float:
  """A z near which the epsilon of distributions is the target: straight lines
  through the logarithms of both."""
  a, b = start, start * 0.93
  at, bt = (math.log(max(of(z), 1e-12) / target) for z in (a, b))
  for _ in range(6):
    if abs(bt) < 1e-4 or at == bt:
      break
    step = -bt * (math.log(b) - math.log(a)) / (bt - at)
    a, at = b, bt
    b *= math.exp(min(max(step, -0.7), 0.7))
    bt = math.log(max(of(b), 1e-12) / target)
  return b


def _least(z: float, target: float, of: Callable) -> float:
  """z rounded up to four digits, and as far on as it takes."""
  unit = 10.0 ** (math.floor(math.log10(z)) - 3)
  number = math.ceil(z / unit - 1e-9)
  while of(number * unit) > target:
    number += 1
  return float(f'{number * unit:.4g}')


def noisy_mean(
  sums: np.ndarray, noise: float, expected: float, words: Sequence[int]
) -> float:
  """A mean of scores that may be told: each client's own mean, in [0, 1], is
  added up; noise is added, and what was expected to come divides it.

  Args:
    sums: sum and weight of each client, [K, 2]; K may be 0.
    noise: standard deviation, of a sum whose sensitivity is 1.
    expected: clients.
    words: of the draw: seed, stage, round.
  """
  means = sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.inf)
  total = float(np.clip(np.nan_to_num(means), 0.0, 1.0).sum())
  rng = np.random.default_rng([words[0], Stream.SCORE.number, *words[1:]])
  return (total + noise * float(rng.standard_normal())) / expected
