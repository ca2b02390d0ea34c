"""How a run stands, read from its folder alone, by anyone who sees it.

Nothing is written and nothing locked, so the run may go on meanwhile.
"""

from __future__ import annotations

import contextlib
import datetime
import pathlib
import statistics
import time
from typing import Any, NamedTuple

from fedms_jax.persistence import files, lock, workdir, writers

_RECENT = 20  # rounds that the speed is taken from


class Status(NamedTuple):
  """How a run stands.

  state: 'finished', 'running', 'running elsewhere' (the lock is of another
  host), 'saved' (stopped, to be resumed), or 'killed' (ended without a
  word). stages: name and number of rounds (None: unknown) of each. record:
  the last line of metrics.jsonl, None before the first round. rate: rounds
  per second, None before the second one. idle: seconds since the last round.
  checkpoint: rounds that the last checkpoint has seen, over all stages; None
  without one. holder: the lock's content. activity: what activity.json holds,
  None if nothing holds up the round.
  """

  state: str
  stages: list[tuple[str, int | None]]
  record: dict[str, Any] | None = None
  rate: float | None = None
  idle: float | None = None
  checkpoint: int | None = None
  holder: dict[str, Any] | None = None
  activity: dict[str, Any] | None = None

  @property
  def done(self) -> int:
    """Rounds done, over all stages."""
    if self.record is None:
      return 0
    before = self.stages[: self.record['stage']]
    return sum(rounds or 0 for _, rounds in before) + self.record['round'] + 1

  @property
  def total(self) -> int | None:
    """Rounds of all stages."""
    known = [rounds for _, rounds in self.stages if rounds is not None]
    return sum(known) if len(known) == len(self.stages) else None

  @property
  def left(self) -> float | None:
    """Seconds to the last round, at the rate of the latest ones."""
    if self.rate is None or self.total is None:
      return None
    return (self.total - self.done) / self.rate


def read(path: str | pathlib.Path, now: float | None = None) -> Status:
  """Reads how the run in a folder stands.

  Args:
    path: the workdir.
    now: seconds since 1970; None: the clock's.

  Raises:
    ValueError: there is no run in it.
  """
  folder = workdir.Workdir.look(path)
  held = lock.holder(folder.root)
  records = []
  if folder.metrics.exists():
    records = writers.read_metrics(folder.metrics)
  last = records[-1] if records else None
  now = time.time() if now is None else now
  return Status(
    state=_state(folder, held),
    stages=_stages(folder),
    record=last,
    rate=_rate(records),
    idle=None if last is None else now - last['unix_seconds'],
    checkpoint=_checkpoint(folder.checkpoints),
    holder=held and held[0],
    activity=_activity(folder),
  )


def text(path: str | pathlib.Path, status: Status) -> str:
  """The status as a person reads it."""
  rows = [['state', _ADVICE[status.state]]]
  if status.holder is not None:
    rows.append(['held by', _holder(status.holder)])
  record = status.record
  if record is None:
    rows.append(['round', 'none yet: loading, pre-training or compiling'])
  else:
    name, rounds = status.stages[record['stage']]
    of = f' of {rounds}' if rounds is not None else ''
    number = f'{record["stage"] + 1} of {len(status.stages)}'
    score = record.get('score')
    rows += [
      ['stage', f'{name}, {number}'],
      ['round', f'{record["round"] + 1}{of}{_ago(status.idle)}'],
      ['depth', f'{record["depth"]:g} active blocks'],
      ['score', '-' if score is None else f'{score:.4f}'],
    ]
  if status.activity is not None and status.state.startswith('running'):
    rows.append(['compiling', f'for {status.activity["compiling"]}'])
  if status.rate is not None:
    rows.append(['speed', f'{status.rate:.3g} rounds per second'])
  if status.left is not None and status.state.startswith('running'):
    rows.append(['time left', f'about {_duration(status.left)}'])
  rows.append(['checkpoint', _saved(status)])
  return '\n'.join([str(path), *(f'  {a:<12}{b}' for a, b in rows)])


# What `brief` gives.
BRIEF = ('state', 'stage', 'round', 'score', 'time left')


def brief(status: Status) -> list[str]:
  """The status in the cells of a row, '-' for what is not known."""
  record, total = status.record, status.total
  stage, score = '-', None
  if record is not None:
    stage, score = status.stages[record['stage']][0], record.get('score')
  left = '-'
  if status.left is not None and status.state.startswith('running'):
    left = _duration(status.left)
  return [
    status.state,
    stage,
    f'{status.done} of {"?" if total is None else total}',
    '-' if score is None else f'{score:.4f}',
    left,
  ]


_ADVICE = {
  'finished': 'finished',
  'running': 'running',
  'running elsewhere': 'held by another host, which alone knows if it runs',
  'saved': 'stopped; go on with `resume`',
  'killed': 'killed; go on with `resume` from the last checkpoint',
}


def _state(folder: workdir.Workdir, held) -> str:
  if held is not None and held[1] is not False:
    return 'running' if held[1] else 'running elsewhere'
  if folder.result() is not None:
    return 'finished'
  return 'saved' if held is None else 'killed'


def _activity(folder: workdir.Workdir) -> dict[str, Any] | None:
  with contextlib.suppress(FileNotFoundError, ValueError):
    return files.read_json(folder.activity)
  return None


def _stages(folder: workdir.Workdir) -> list[tuple[str, int | None]]:
  """Stages and their rounds."""
  with contextlib.suppress(FileNotFoundError, ValueError):
    found = files.read_json(folder.stages)
    return [(stage['name'], stage['rounds']) for stage in found]
  # The run has not come so far, or is of a version without this file.
  values = writers.parse_flags(folder.flags.read_text(encoding='utf-8'))
  first, second = (
    int(values[name]) if name in values else None
    for name in ('algorithm.stage1_rounds', 'algorithm.stage2_rounds')
  )
  stages = [('global', first), ('personal', second)]
  return stages[:1] if second == 0 else stages


def _rate(records: list[dict[str, Any]]) -> float | None:
  """Rounds per second lately. The median, because of the pauses: between two
  starts, and where a new depth is compiled."""
  times = [r['unix_seconds'] for r in records[-_RECENT - 1 :]]
  gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
  return 1 / max(statistics.median(gaps), 1e-6) if gaps else None


def _checkpoint(folder: pathlib.Path) -> int | None:
  """The number of the newest finished checkpoint."""
  names = (p.name for p in folder.iterdir()) if folder.exists() else ()
  return max((int(name) for name in names if name.isdigit()), default=None)


def _saved(status: Status) -> str:
  """The last checkpoint, in words."""
  if status.checkpoint is None:
    return 'none yet'
  left = status.checkpoint
  for name, rounds in status.stages:
    if rounds is None or left <= rounds:
      return f'{name}, after round {left}'
    left -= rounds
  return f'after {status.checkpoint} rounds'


def _holder(holder: dict[str, Any]) -> str:
  job = holder.get('slurm')
  return (
    f'process {holder.get("pid", "?")} on {holder.get("host", "?")} since '
    f'{holder.get("time", "?")}' + (f', SLURM step {job[1]}' if job else '')
  )


def _ago(seconds: float | None) -> str:
  return '' if seconds is None else f', {_duration(max(seconds, 0.0))} ago'


def _duration(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))
