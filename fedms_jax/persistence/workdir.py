"""The folder of a run: who may write to it, and what lies where.

flags.txt       the options of the run, which repeat it
data.json       what the model knows of the data: names of the classes, T
partition.json  rows of each class that clients have
stages.json     name, rounds and served model of each stage
lock.json       the process that writes here now, see `lock.py`
metrics.jsonl   one line per stage and round
activity.json   what a round waits for now, if it does: its programs
summary.json    the final table
per_client.csv  or .parquet: a row for each evaluated client
checkpoints/    server state, schedule, round
clients/        personal state of the clients
tensorboard/    events, with other loggers: metrics.csv, wandb/, mlflow/
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

from fedms_jax.persistence import files
from fedms_jax.persistence.lock import Lock, holder

# Options that change no number of the run; a run may go on with others. Names
# that end in a dot stand for a whole section.
NEUTRAL = ('progress', 'loggers', 'tensorboard', 'checkpoint.')


class Workdir:
  """An open run folder, held by this process until `close`.

  Attributes:
    root: the folder.
    existed: a run was here before; its checkpoints may be gone on from.
  """

  def __init__(self, root: pathlib.Path, existed: bool, lock: Lock | None):
    self.root = root
    self.existed = existed
    self._lock = lock
    self._text = ''
    self._found: set[str] = set()  # what lay there before us

  @classmethod
  def open(
    cls,
    path: str | os.PathLike,
    config_text: str,
    resume: bool = False,
    break_lock: bool = False,
  ) -> Workdir:
    """Makes or enters the folder of a run and locks it.

    Args:
      path: the folder; made if absent.
      config_text: what flags.txt is to hold, see `flags.to_text`.
      resume: going on with the run of this folder is wanted; without a run
        in it, it starts afresh.
      break_lock: take over a lock that a process on another host left.

    flags.txt is written by `begin`: a folder is a run's once there is
    something to keep, and not before all is read and checked.

    Raises:
      ValueError: the folder cannot be written, is held by another process,
        holds a run of other flags, or a run although `resume` is False.
    """
    root = pathlib.Path(path)
    try:
      root.mkdir(parents=True, exist_ok=True)
      lock = Lock.acquire(root / 'lock.json', break_lock)
    except OSError as e:
      raise ValueError(
        f'`workdir`={path} cannot be written: {e}. Choose another folder.'
      ) from e
    workdir = cls(root, (root / 'flags.txt').exists(), lock)
    workdir._found = set(os.listdir(root))
    try:
      workdir._check(config_text, resume)
    except BaseException:
      workdir.close()
      raise
    workdir._text = config_text
    return workdir

  @classmethod
  def look(cls, path: str | os.PathLike) -> Workdir:
    """The folder of a run, to read while others may write; it is not locked.

    Raises:
      ValueError: there is no run in it.
    """
    workdir = cls(pathlib.Path(path), True, None)
    if not workdir.flags.is_file():
      if holder(workdir.root) is not None:
        raise ValueError(
          f'`workdir`={path} holds no run yet: its process reads data and '
          'model, or has ended meanwhile. Ask again in a moment.'
        )
      raise ValueError(
        f'`workdir`={path} holds no run: {workdir.flags} does not exist. Give '
        'the folder of a run that was started with `workdir`.'
      )
    return workdir

  def begin(self) -> None:
    """Makes the folder this run's, before its first file. Idempotent."""
    if self._lock is not None and not self.flags.exists():
      files.write_atomic(self.flags, self._text)

  def abandon(self) -> None:
    """Takes back what a start wrote that was refused before its first round,
    so that corrected flags find the folder free."""
    if self._lock is None or self.existed or not self.flags.exists():
      return
    if self.metrics.exists() and self.metrics.stat().st_size:
      return
    ours = (*self._results, self.tensorboard, self.root / 'pretrained')
    ours += (self.facts, self.partition, self.stages, self.flags)
    for path in ours:
      if path.name in self._found:
        continue
      if path.is_dir():
        shutil.rmtree(path)
      else:
        path.unlink(missing_ok=True)

  def _check(self, config_text: str, resume: bool) -> None:
    """Refuses the folder of another run."""
    if not self.existed:
      for path in self._results:
        if path.exists():
          raise ValueError(
            f'`workdir`={self.root} holds {path.name} but no flags.txt, so '
            'nobody knows which run it is of. Choose another folder.'
          )
      return
    self.check_flags(config_text)
    if not resume:
      raise ValueError(
        f'`workdir`={self.root} holds a run of the same flags already. '
        'Use `resume` to go on with it, or choose another folder.'
      )

  def check_flags(self, config_text: str) -> None:
    """Raises `ValueError` if the run of the folder is of other flags."""
    try:
      theirs = self.flags.read_text(encoding='utf-8')
    except OSError:  # no run yet, or none that is seen from here
      return
    difference = _difference(theirs, config_text)
    if difference:
      raise ValueError(
        f'`workdir`={self.root} holds a run made by other flags:\n'
        f'{difference}\nChoose another folder, or give the flags of '
        f'{self.flags}.'
      )

  @property
  def _results(self) -> tuple[pathlib.Path, ...]:
    return self.checkpoints, self.metrics, self.summary, self.clients

  def result(self) -> dict[str, Any] | None:
    """What summary.json holds; None: the run is not finished, or died while
    it wrote."""
    try:
      found = files.read_json(self.summary)
    except (FileNotFoundError, ValueError):
      return None
    whole = isinstance(found, dict) and {'models', 'total'} <= found.keys()
    return found if whole else None

  @property
  def flags(self) -> pathlib.Path:
    return self.root / 'flags.txt'

  @property
  def facts(self) -> pathlib.Path:
    return self.root / 'data.json'

  @property
  def partition(self) -> pathlib.Path:
    return self.root / 'partition.json'

  @property
  def stages(self) -> pathlib.Path:
    return self.root / 'stages.json'

  @property
  def activity(self) -> pathlib.Path:
    return self.root / 'activity.json'

  def say(self, activity: dict[str, Any] | None) -> None:
    """Tells readers of the folder what goes on; None: nothing of note."""
    if activity is None:
      self.activity.unlink(missing_ok=True)
    else:
      files.write_atomic(self.activity, json.dumps(activity) + '\n')

  @property
  def metrics(self) -> pathlib.Path:
    return self.root / 'metrics.jsonl'

  @property
  def summary(self) -> pathlib.Path:
    return self.root / 'summary.json'

  @property
  def checkpoints(self) -> pathlib.Path:
    return self.root / 'checkpoints'

  @property
  def clients(self) -> pathlib.Path:
    return self.root / 'clients'

  @property
  def tensorboard(self) -> pathlib.Path:
    return self.root / 'tensorboard'

  def close(self) -> None:
    """Gives the folder free. Idempotent."""
    if self._lock is not None:
      self._lock.release()

  def __enter__(self) -> Workdir:
    return self

  def __exit__(self, *unused) -> None:
    self.close()


def _difference(theirs: str, ours: str) -> str:
  """The options that differ between two flag texts, line by line, or ''."""
  old, new = _options(theirs), _options(ours)
  lines = []
  for name in old | new:
    if name.startswith(NEUTRAL) or old.get(name) == new.get(name):
      continue
    for who, options in (('the folder:', old), ('this run:', new)):
      value = f'={options[name]}' if name in options else ' does not exist'
      lines.append(f'  {who:<12}--{name}{value}')
  return '\n'.join(lines)


def _options(text: str) -> dict[str, str]:
  """The values of a flag text by name."""
  pairs = (line[2:].partition('=') for line in text.splitlines() if line)
  return {name: value for name, _, value in pairs}
