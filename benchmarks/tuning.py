"""What makes a comparison fair: one search for all, and one budget for all.

The learning rate of every row is searched on validation rows of one seed, in
shortened runs, by the score and, of equal ones, by the loss (of language
models by the loss alone). A row with an axis of its own, such as the rate of
its server optimizer, is then searched along it, at the best learning rate, or
along it alone, if it has no learning rate. With a budget of bytes or of client
FLOPs, a row gets as many rounds as it takes to spend what the reference row
does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.contest import SEARCH, Contest, Entry, Flags, Job
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.report import runs, statistics
from fedms_jax.shell import build
from fedms_jax.shell.config import Config

CLOSE = 0.05  # of the budget; a row is run again while it is further away
_TRIES = 4


def _client_flops(run: runs.Run) -> float:
  return run.summary['total']['client_flops']


# What a row may spend as much of as the reference does.
COSTS: dict[str, Callable[[runs.Run], float]] = {
  'bytes': statistics.volume,
  'flops': _client_flops,
}


class Budget(NamedTuple):
  """What rows may spend. amount: of `spent`. most: times the rounds that a row
  has at most, and one over it at least."""

  amount: float
  spent: Callable[[runs.Run], float]
  most: float


def rates(config: Config, rate: str) -> Flags:
  """The flags of a learning rate: the personal one keeps its ratio to the
  shared one, the gate's stays."""
  c = config.client
  found = {'client.learning_rate': rate}
  if c.personal_learning_rate:
    ratio = build.rates(config)['personal'] / c.learning_rate
    found['client.personal_learning_rate'] = f'{float(rate) * ratio:.6g}'
  return found


def lasting(config: Config, factor: float) -> Flags:
  """The flags of so many times the rounds; a stage that has any keeps one."""
  if factor == 1.0:
    return {}
  return {
    f'algorithm.{name}': str(max(1, round(factor * rounds)))
    for name in ('stage1_rounds', 'stage2_rounds')
    if (rounds := getattr(config.algorithm, name))
  }


LOSS = 'validation_loss'  # of a line of metrics.jsonl


class Tried(NamedTuple):
  """What a value has come to on validation rows. score: of the served model;
  loss: of it. nats: whether losses are compared and not scores, as of language
  models, whose accuracy of tokens hardly moves."""

  score: float
  loss: float = 0.0
  nats: bool = False

  @property
  def rank(self) -> tuple[float, float]:
    """Orders what was tried: by score, and of equal ones by loss."""
    return (-self.loss, 0.0) if self.nats else (self.score, -self.loss)


Values = Mapping[str, Tried | None]  # of each value, None: it diverged


def validation(run: runs.Run) -> Tried | None:
  """Means over the last quarter of the last stage: the same cohorts for all
  rates.

  Raises:
    ValueError: it is of a version that recorded no validation loss.
  """
  stage = run.records[-1]['stage']
  told = [r for r in run.records if r['stage'] == stage]
  last = [
    (r['score'], r.get(LOSS, math.nan))
    for r in told[-math.ceil(len(told) / 4) :]
  ]
  if any(x is not None and math.isnan(x) for _, x in last):
    raise ValueError(
      f'{run.root} is a try of an earlier version, whose rounds have no '
      f'{LOSS}, by which equal scores are told apart. Remove the folder, or '
      'take another --out.'
    )
  if any(x is None for pair in last for x in pair):
    return None
  nats = bool(run.summary.get('perplexity'))
  score, loss = np.mean(last, axis=0).tolist()
  return Tried(score, loss, nats)


def tries(
  contest: Contest, entry: Entry, values: Sequence[str], share: float, seed: str
) -> list[Job]:
  """The shortened runs of a row, one for each rate, or for each value of the
  axis that stands for it; none without rates to try."""
  if not (values and entry.alone):
    return [
      _attempt(contest, entry, share, seed, value, {}) for value in values
    ]
  flag, others = entry.axis or ('', ())
  return [
    _attempt(contest, entry, share, seed, '', {flag: value}) for value in others
  ]


def further(
  contest: Contest, entry: Entry, rate: str, share: float, seed: str
) -> list[Job]:
  """The shortened runs along the axis of a row, at a rate that `tries` had;
  the run of the row's own value is that of `tries`."""
  if entry.axis is None or entry.alone:
    return []
  flag, values = entry.axis
  own = entry.flags[flag]
  return [
    _attempt(
      contest, entry, share, seed, rate, {} if value == own else {flag: value}
    )
    for value in values
  ]


def _attempt(
  contest: Contest, entry: Entry, share: float, seed: str, rate: str, more
) -> Job:
  """A shortened run of a row at a rate, if any, and with `more` flags."""
  # Rates are compared by the validation score of each round.
  flags = entry.flags | more | {'seed': seed, 'eval.validate_every': '1'}
  config = contest.config(Job(entry.label, 'search', flags))
  parts = ({'rate': rate} if rate else {}) | more
  named = ''.join(f',{key}={value}' for key, value in parts.items())
  short = {} if entry.once else lasting(config, share)
  return Job(
    entry.label,
    f'{SEARCH}{name(entry.label)}{named}',
    flags | short | (rates(config, rate) if rate else {}),
    1.0 if entry.once else share,
  )


def search(
  contest: Contest, jobs: Sequence[Job], values: Sequence[str]
) -> dict[str, Tried | None]:
  """What came of each value; None: it diverged, or does not run."""
  tried = {}
  for value, job in zip(values, jobs, strict=True):
    found = contest.do(job)
    tried[value] = found and validation(found)
  if any(one is not None for one in tried.values()):
    contest.missing.pop(jobs[0].label, None)  # a rate that diverged is no loss
  return tried


def best(tried: Values) -> str | None:
  """The value of the highest rank, the lower one of equals."""
  known = [(x.rank, -float(r), r) for r, x in tried.items() if x is not None]
  return max(known)[2] if known else None


def scores(tried: Values) -> dict[str, float | None]:
  """The score of each value, for a page."""
  return {value: x and x.score for value, x in tried.items()}


def search_costs(
  contest: Contest, tried: Mapping[str, Sequence[Job]]
) -> dict[str, dict[str, float]]:
  """What the runs of a search have spent, by row and kind of cost."""
  kinds = COSTS | {'seconds': lambda run: run.summary['run_seconds']}
  found = {}
  for label, jobs in tried.items():
    places = [Workdir(contest.place(job), True, None) for job in jobs]
    done = [runs.read(x.root) for x in places if x.result() is not None]
    if done:
      found[label] = {k: sum(map(get, done)) for k, get in kinds.items()}
  return found


def first_factor(
  contest: Contest, job: Job, tried: Sequence[Job], budget: Budget
) -> float:
  """How many times its rounds a row needs for a budget, by what a round of its
  search costs; 1 if there was none."""
  for one in tried:
    folder = Workdir(contest.place(one), True, None)
    if folder.result() is None:
      continue
    spent = budget.spent(runs.read(folder.root))
    rounds = _rounds(contest.config(job)) / _rounds(contest.config(one))
    return _within(budget, budget.amount / (spent * rounds)) if spent else 1.0
  return 1.0


def matched(
  contest: Contest, job: Job, budget: Budget | None, factor: float = 1.0
) -> Job:
  """The job with as many rounds as spend the budget, or nearly.

  It is found by running, first with `factor` times the rounds: what a round
  costs may follow from scores. Without a budget, or if the row spends nothing,
  or the same in any number of rounds, it is the job as it is.
  """
  closest, distance, spent = job, math.inf, None
  for _ in range(_TRIES):
    flags = job.flags | lasting(contest.config(job), factor)
    folder = job.folder if factor == 1.0 else f'{job.folder},x{factor:.3f}'
    tried = job._replace(folder=folder, flags=flags, weight=factor)
    found, before = contest.do(tried), spent
    spent = found and budget and budget.spent(found)
    if budget is None or not spent or spent == before:
      return closest
    if abs(spent / budget.amount - 1) < distance:
      distance, closest = abs(spent / budget.amount - 1), tried
    new = _within(budget, factor * budget.amount / spent)
    if distance <= CLOSE or lasting(contest.config(job), new) == lasting(
      contest.config(job), factor
    ):
      break
    factor = new
  return closest


def _within(budget: Budget, factor: float) -> float:
  return min(max(factor, 1 / budget.most), budget.most)


def _rounds(config: Config) -> int:
  return config.algorithm.stage1_rounds + config.algorithm.stage2_rounds


def name(label: str) -> str:
  """A label as a part of the name of a folder."""
  return ''.join(c if c.isalnum() or c in '._+-' else '_' for c in label)
