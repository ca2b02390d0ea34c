"""When and where SAL activates blocks."""

from __future__ import annotations

import dataclasses

from fedms_jax.shell.fields import opt


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
  name: str = opt(
    'queue',
    'when SAL activates more blocks',
    choices=(
      'queue',
      'queue_std',
      'fixed',
      'linear',
      'geometric',
      'dense',
      'random',
      'manual',
    ),
    plugins='schedules',
  )
  order: str = opt(
    'top_down',
    'which blocks come first; or which ones are drawn for each client and '
    'round (allocation, dropout), dealt over the cohort by importance and '
    'even use (balanced), chosen by what each client scores its own blocks in '
    'each round (f3ocus), or left out by a sliding window (window)',
    choices=(
      'top_down',
      'bottom_up',
      'random',
      'importance',
      'allocation',
      'balanced',
      'dropout',
      'window',
      'f3ocus',
    ),
  )
  shape: str = opt(
    'uniform',
    'how likely a block is, for allocation',
    choices=('uniform', 'rising', 'falling', 'bottleneck', 'importance'),
  )
  balance: float = opt(
    1.0,
    'weight of even use against importance, for balanced (0: importance alone)',
    low=0.0,
  )
  search: str = opt(
    'exact',
    'how f3ocus finds the front of its two aims',
    choices=('exact', 'nsga2', 'annealing'),
  )
  start: int = opt(1, 'active blocks at the start', low=1)
  step: int = opt(1, 'blocks activated at a time', low=1)
  cap: int = opt(0, 'most active blocks (0: all)', low=0)
  queue_length: int = opt(
    5, 'Q, scores in the capability queue', low=2, high=1 << 20
  )
  eps: float = opt(
    0.01,
    'range of the queue (queue_std: its standard deviation) under which '
    'training has settled',
    above=0.0,
  )
  resolution: float = opt(
    3.0,
    'scores that differ by fewer validation rows count as equal, for queue',
    low=0.0,
  )
  interval: int = opt(5, 'rounds between activations, for fixed', low=1)
  probability: float = opt(
    0.2, 'chance of an activation per round, for random', above=0.0, high=1.0
  )
  depths: str = opt('', 'depth of each round, for manual: 1,1,2,4')
  score: str = opt(
    'validation',
    'what the queue watches: validation (the score on validation rows), '
    'train_accuracy, train_loss, or a metric on validation rows, such as f1',
  )
  reports: int = opt(
    256,
    'average the newest score of this many clients (0: only the cohort)',
    low=0,
  )
  budgets: str = opt(
    '', 'depth budgets dealt to clients in equal parts: 1,2,6 (empty: none)'
  )
