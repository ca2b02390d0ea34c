"""The folder of a run: who may write to it, and what lies where.

flags.txt       the options of the run, which repeat it
data.json       what the model knows of the data: names of the classes, T
partition.json  rows of each class that clients have
stages.json     name, rounds and served model of each stage
lock.json       the process that writes here now
metrics.jsonl   one line per stage and round
summary.json    the final table
checkpoints/    server state, schedule, round
clients/        personal state of the clients
tensorboard/    events
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import time
from typing import Any

from fedms_jax.cluster import host

# Options that change no number of the run; a run may go on with others. Names
# that end in a dot stand for a whole section.
NEUTRAL = ('progress', 'tensorboard', 'checkpoint.')


def write_atomic(path: pathlib.Path, text: str) -> None:
  """Writes a text file that is there whole or not at all."""
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'w', encoding='utf-8') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


class Workdir:
  """An open run folder, held by this process until `close`.

  Attributes:
    root: the folder.
    existed: a run was here before; its checkpoints may be gone on from.
  """

  def __init__(self, root: pathlib.Path, existed: bool, lock: _Lock | None):
    self.root = root
    self.existed = existed
    self._lock = lock

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

    Raises:
      ValueError: the folder cannot be written, is held by another process,
        holds a run of other flags, or a run although `resume` is False.
    """
    root = pathlib.Path(path)
    try:
      root.mkdir(parents=True, exist_ok=True)
      lock = _Lock.acquire(root / 'lock.json', break_lock)
    except OSError as e:
      raise ValueError(
        f'`workdir`={path} cannot be written: {e}. Choose another folder.'
      ) from e
    workdir = cls(root, (root / 'flags.txt').exists(), lock)
    try:
      workdir._claim(config_text, resume)
    except BaseException:
      workdir.close()
      raise
    return workdir

  @classmethod
  def look(cls, path: str | os.PathLike) -> Workdir:
    """The folder of a run, to read while others may write; it is not locked.

    Raises:
      ValueError: there is no run in it.
    """
    workdir = cls(pathlib.Path(path), True, None)
    if not workdir.flags.is_file():
      raise ValueError(
        f'`workdir`={path} holds no run: {workdir.flags} does not exist. Give '
        'the folder of a run that was started with `workdir`.'
      )
    return workdir

  def _claim(self, config_text: str, resume: bool) -> None:
    """Refuses the folder of another run; writes flags.txt into a new one."""
    if not self.existed:
      kept = (self.checkpoints, self.metrics, self.summary, self.clients)
      for path in kept:
        if path.exists():
          raise ValueError(
            f'`workdir`={self.root} holds {path.name} but no flags.txt, so '
            'nobody knows which run it is of. Choose another folder.'
          )
      write_atomic(self.flags, config_text)
      return
    difference = _difference(
      self.flags.read_text(encoding='utf-8'), config_text
    )
    if difference:
      raise ValueError(
        f'`workdir`={self.root} holds a run made by other flags:\n'
        f'{difference}\nChoose another folder, or give the flags of '
        f'{self.flags}.'
      )
    if not resume:
      raise ValueError(
        f'`workdir`={self.root} holds a run of the same flags already. '
        'Use `resume` to go on with it, or choose another folder.'
      )

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


class _Lock:
  """A lock file that names the process that holds it."""

  def __init__(self, path: pathlib.Path, holder: dict[str, Any]):
    self._path = path
    self._holder = holder

  @classmethod
  def acquire(cls, path: pathlib.Path, break_lock: bool) -> _Lock:
    """Takes the lock, or raises `ValueError` that says who holds it."""
    pid = os.getpid()
    holder = {
      'host': socket.gethostname(),
      'pid': pid,
      'started': _process_start(pid),
      'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
      'slurm': host.slurm_start(os.environ),
    }
    lock = cls(path, holder)
    while True:
      try:
        _create(path, holder)
        return lock
      except FileExistsError:
        if lock._take_over(break_lock):
          return lock

  def _take_over(self, break_lock: bool) -> bool:
    """Replaces the lock of a dead process by ours; False if it is gone.

    The file beside the lock lets only one process do so at a time: of two
    that found the same dead holder, the second would else replace the lock
    of the first.
    """
    guard = self._path.with_name(f'{self._path.name}.guard')
    try:
      _create(guard, self._holder)
    except FileExistsError:
      raise ValueError(
        f'{self._path} is being taken over by another process. Try again; if '
        f'no process is there, remove {guard}.'
      ) from None
    try:
      theirs = _read(self._path)
      if theirs is None:
        return False
      problem = _why_held(theirs, self._holder, break_lock)
      if problem:
        raise ValueError(f'{self._path.parent} is in use: {problem}')
      write_atomic(self._path, json.dumps(self._holder))
      return True
    finally:
      guard.unlink()

  def release(self) -> None:
    """Removes the lock, unless it has been broken and is another's now."""
    if _read(self._path) == self._holder:
      self._path.unlink()


def _create(path: pathlib.Path, holder: dict[str, Any]) -> None:
  """Creates the file; `FileExistsError` if another process was faster."""
  descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
  with os.fdopen(descriptor, 'w', encoding='utf-8') as file:
    file.write(json.dumps(holder))


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """The holder, {} if the file is half-written, None if it is gone."""
  try:
    holder = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return None
  except ValueError:
    return {}
  return holder if isinstance(holder, dict) else {}


def holder(root: pathlib.Path) -> tuple[dict[str, Any], bool | None] | None:
  """What the lock of a run's folder says of the process that holds it, and
  whether that is alive; None: it is of another host and cannot be seen from
  here. Without a lock, None altogether."""
  theirs = _read(root / 'lock.json')
  if theirs is None:
    return None
  return theirs, _alive(theirs, socket.gethostname())


def _alive(holder: dict[str, Any], host: str) -> bool | None:
  """Whether the holder of a lock lives; None if `host` cannot know."""
  if holder.get('host') != host or 'pid' not in holder:
    return None
  start = _process_start(holder['pid'])
  # A dead one's number may have gone to another process.
  return start is not None and start == holder.get('started')


def _why_held(
  theirs: dict[str, Any], ours: dict[str, Any], break_lock: bool
) -> str:
  """Why a lock must be respected, or '' if it may be taken."""
  alive = _alive(theirs, ours['host'])
  if alive:
    return (
      f'process {theirs["pid"]} on this host has written to it since '
      f'{theirs["time"]}. Wait for it, stop it, or choose another folder.'
    )
  if alive is False or break_lock:
    return ''
  if _put_back(theirs.get('slurm'), ours['slurm']):
    return ''
  return (
    f'process {theirs.get("pid", "?")} on host {theirs.get("host", "?")} has '
    f'held it since {theirs.get("time", "?")}, and whether it is alive cannot '
    'be seen from here. If it is not, add `break_lock`.'
  )


def _put_back(theirs: list | None, ours: list | None) -> bool:
  """Whether an earlier start of our own SLURM job holds the lock: SLURM ends
  all processes of a job before it starts the job again, on any nodes."""
  if theirs is None or ours is None:
    return False
  return theirs[:-1] == ours[:-1] and theirs[-1] < ours[-1]


def _process_start(pid: int) -> str | None:
  """When a process of this host was started, None if there is none.

  A process number alone does not identify a process: after a restart of the
  machine or of a container the same number is soon in use again.
  """
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass  # alive, and of another user
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:  # no /proc on this system: all that live count as the same
    return 'unknown'
  # Field 2, the command, may hold spaces; 3 is the state, 22 the start.
  fields = stat.rpartition(')')[2].split()
  return None if fields[0] == 'Z' else f'{boot} {fields[19]}'
