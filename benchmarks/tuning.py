"""What makes a comparison fair: one search for all, and one budget for all.

The learning rate of every row is searched on validation rows of the first
seed, in shortened runs; a row with an axis of its own, such as the rate of its
server optimizer, is then searched along it, at the best learning rate. With a
budget of bytes, a row gets as many rounds as
it takes to send and receive what the reference row does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.contest import Contest, Entry, Flags, Job
from fedms_jax.report import runs, statistics
from fedms_jax.shell.config import Config

CLOSE = 0.05  # of the budget; a row is run again while it is further away
_TRIES = 4
_MOST = 8.0  # times the rounds, at most, and the least is one over it


def rates(config: Config, rate: str) -> Flags:
  """The flags of a learning rate: the personal one keeps its ratio to the
  shared one, the gate's stays."""
  c = config.client
  found = {'client.learning_rate': rate}
  if c.personal_learning_rate:
    ratio = c.personal_learning_rate / c.learning_rate
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


def validation(run: runs.Run) -> float | None:
  """Mean validation score of the served model over the last quarter of the
  last stage: the same cohorts for all rates."""
  stage = run.records[-1]['stage']
  scores = [r['score'] for r in run.records if r['stage'] == stage]
  last = scores[-math.ceil(len(scores) / 4) :]
  return None if None in last else float(np.mean(last))


def tries(
  contest: Contest, entry: Entry, values: Sequence[str], share: float, seed: str
) -> list[Job]:
  """The shortened runs of a row, one for each rate."""
  return [_attempt(contest, entry, share, seed, value, {}) for value in values]


def further(
  contest: Contest, entry: Entry, rate: str, share: float, seed: str
) -> list[Job]:
  """The shortened runs along the axis of a row, at a rate that `tries` had;
  the run of the row's own value is that of `tries`."""
  if entry.axis is None:
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
  """A shortened run of a row at a rate, and with `more` flags."""
  # Rates are compared by the validation score of each round.
  flags = entry.flags | more | {'seed': seed, 'eval.validate_every': '1'}
  config = contest.config(Job(entry.label, 'search', flags))
  parts = {'rate': rate} | more
  named = ''.join(f',{key}={value}' for key, value in parts.items())
  return Job(
    entry.label,
    f'search/{name(entry.label)}{named}',
    flags | lasting(config, share) | rates(config, rate),
    share,
  )


def search(
  contest: Contest, jobs: Sequence[Job], values: Sequence[str]
) -> dict[str, float | None]:
  """The validation score of each value; None: it diverged, or does not run."""
  scores = {}
  for value, job in zip(values, jobs, strict=True):
    found = contest.do(job)
    scores[value] = found and validation(found)
  if any(score is not None for score in scores.values()):
    contest.missing.pop(jobs[0].label, None)  # a rate that diverged is no loss
  return scores


def best(scores: dict[str, float | None]) -> str | None:
  """The value with the highest score, the lower one of equals."""
  known = [(s, -float(r), r) for r, s in scores.items() if s is not None]
  return max(known)[2] if known else None


def matched(contest: Contest, job: Job, budget: float | None) -> Job:
  """The job with as many rounds as spend the budget of bytes, or nearly.

  It is found by running: what a round sends may follow from scores. Without a
  budget, or if the row sends nothing, it is the job as it is.
  """
  factor, closest = 1.0, job
  distance = math.inf
  for attempt in range(_TRIES):
    flags = job.flags | lasting(contest.config(job), factor)
    folder = job.folder if attempt == 0 else f'{job.folder},x{factor:.3f}'
    tried = job._replace(folder=folder, flags=flags, weight=factor)
    found = contest.do(tried)
    spent = found and statistics.volume(found)
    if not (budget and spent):
      return closest
    if abs(spent / budget - 1) < distance:
      distance, closest = abs(spent / budget - 1), tried
    new = min(max(factor * budget / spent, 1 / _MOST), _MOST)
    if distance <= CLOSE or lasting(contest.config(job), new) == lasting(
      contest.config(job), factor
    ):
      break
    factor = new
  return closest


def name(label: str) -> str:
  """A label as a part of the name of a folder."""
  return ''.join(c if c.isalnum() or c in '._+-' else '_' for c in label)
