"""The lock of a run's folder: one process writes there at a time.

`lock.json` says who holds it, and is there whole or not at all. Beside it the
holder keeps `lock.json.held` open and locked by the kernel (flock): that ends
with the process, however it ends. What the kernel says counts on one machine;
the file counts between machines, whose kernels may not know of each other.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any

from fedms_jax.cluster import host
from fedms_jax.persistence import files

_TRIES, _PAUSE = 10, 0.02  # who only looks holds the kernel's lock for a moment
_HALF_WRITTEN = 60.0  # seconds after which nobody is still writing a lock

Holder = dict[str, Any]


class Lock:
  """A lock that this process holds until `release`."""

  def __init__(self, path: pathlib.Path, holder: Holder, kernel: int | None):
    self._path = path
    self._holder = holder
    self._kernel: int | None = kernel

  @classmethod
  def acquire(cls, path: pathlib.Path, break_lock: bool) -> Lock:
    """Takes the lock, or raises `ValueError` that says who holds it."""
    beside = _beside(path)
    ours = not beside.exists()
    kernel = _locked(beside)
    if kernel == _HELD:
      theirs = read(path) or {}
      raise ValueError(f'{path.parent} is in use: {_living(theirs)}')
    lock = cls(path, _ourselves(kernel is not None), kernel)
    try:
      lock._take(break_lock)
    except BaseException:
      if ours:  # else a live holder of another host may have it open
        beside.unlink(missing_ok=True)
      lock._let_go()
      raise
    return lock

  def _take(self, break_lock: bool) -> None:
    """Puts our name into the file."""
    while True:
      try:
        _create(self._path, self._holder)
        return
      except FileExistsError:
        if self._take_over(break_lock):
          return

  def _take_over(self, break_lock: bool) -> bool:
    """Replaces the lock of a dead process by ours; False if it is gone.

    The guard lets only one process do so at a time: of two that found the
    same dead holder, the second would else replace the lock of the first.
    """
    guard = self._path.with_name(f'{self._path.name}.guard')
    try:
      _create(guard, self._holder)
    except FileExistsError:
      if _age(guard) < _HALF_WRITTEN:
        raise ValueError(
          f'{self._path} is being taken over by another process. Try again.'
        ) from None
      guard.unlink(missing_ok=True)  # of one that was killed meanwhile
      return False
    try:
      theirs = read(self._path)
      if theirs is None:
        return False
      problem = self._why_held(theirs, break_lock)
      if problem:
        raise ValueError(f'{self._path.parent} is in use: {problem}')
      files.write_atomic(self._path, json.dumps(self._holder))
      return True
    finally:
      guard.unlink(missing_ok=True)

  def _why_held(self, theirs: Holder, break_lock: bool) -> str:
    """Why a lock must be respected, or '' if it may be taken."""
    alive = _alive(
      theirs, self._holder, held=None if self._kernel is None else False
    )
    if alive:
      return _living(theirs)
    if alive is False or break_lock:
      return ''
    if host.put_back(theirs.get('start'), self._holder['start']):
      return ''
    if not theirs and _age(self._path) > _HALF_WRITTEN:
      return ''  # its writer was killed, or lost its power
    return (
      f'process {theirs.get("pid", "?")} on host {theirs.get("host", "?")} has '
      f'held it since {theirs.get("time", "?")}, and whether it is alive '
      'cannot be seen from here. If it is not, add `break_lock`.'
    )

  def release(self) -> None:
    """Removes the lock, unless it has been broken and is another's now."""
    if read(self._path) == self._holder:
      self._path.unlink(missing_ok=True)
      if self._kernel is not None:
        _beside(self._path).unlink(missing_ok=True)
    self._let_go()

  def _let_go(self) -> None:
    kernel, self._kernel = self._kernel, None
    if kernel is not None:
      os.close(kernel)


def holder(root: pathlib.Path) -> tuple[Holder, bool | None] | None:
  """What the lock of a run's folder says of the process that holds it, and
  whether that is alive; None: it is of another host and cannot be seen from
  here. Without a lock, None altogether."""
  path = root / 'lock.json'
  theirs = read(path)
  if theirs is None:
    return None
  return theirs, _alive(theirs, _ourselves(True), _held(_beside(path)))


def read(path: pathlib.Path) -> Holder | None:
  """The holder, {} if the file is half-written, None if it is gone."""
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return None
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _ourselves(kernel: bool) -> Holder:
  """What a lock says of the process that holds it.

  boot names the running kernel, machine what survives its next boot; process
  numbers count within a namespace. kernel: whether it is locked there, too.
  """
  return {
    'host': socket.gethostname(),
    'machine': _machine(),
    'boot': _text('/proc/sys/kernel/random/boot_id'),
    'namespace': _link('/proc/self/ns/pid'),
    'pid': os.getpid(),
    'started': _process_start(os.getpid()),
    'kernel': kernel,
    'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    'start': host.start(os.environ),
  }


def _alive(theirs: Holder, ours: Holder, held: bool | None) -> bool | None:
  """Whether the holder of a lock lives; None if it cannot be known here.

  held: whether the kernel has its lock; None: it knows of no such locks.
  """
  if held:
    return True
  if 'pid' not in theirs:
    return None
  here = theirs.get('host') == ours['host']
  # Earlier versions have it before the start of the process alone.
  boot = theirs.get('boot') or str(theirs.get('started')).partition(' ')[0]
  if boot != ours['boot'] and ours['boot']:
    # Our own machine, started again since: no process has outlived that.
    again = ours['machine'] and theirs.get('machine') == ours['machine']
    return False if here and again else None
  default = ours['namespace'] if here else None
  if theirs.get('namespace', default) != ours['namespace']:
    # Its number means another process here; the kernel's lock says it all.
    return False if theirs.get('kernel') and held is False else None
  start = _process_start(theirs['pid'])
  # A dead one's number may have gone to another process.
  return start is not None and start == theirs.get('started')


def _living(theirs: Holder) -> str:
  return (
    f'process {theirs.get("pid", "?")} on this host has written to it since '
    f'{theirs.get("time", "?")}. Wait for it, stop it, or choose another '
    'folder.'
  )


def _create(path: pathlib.Path, holder: Holder) -> None:
  """Creates the file with its content at once; `FileExistsError` if another
  process was faster."""
  own = f'{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}'
  temporary = path.with_name(f'.{path.name}.{own}')
  try:
    with open(temporary, 'w', encoding='utf-8') as file:
      file.write(json.dumps(holder))
      file.flush()
      os.fsync(file.fileno())
    _link_or_create(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  files.sync_folder(path.parent)


def _link_or_create(source: pathlib.Path, path: pathlib.Path) -> None:
  try:
    os.link(source, path)
  except FileExistsError:
    raise
  except OSError:  # a file system without hard links
    with open(path, 'x', encoding='utf-8') as file:
      file.write(source.read_text(encoding='utf-8'))
      file.flush()
      os.fsync(file.fileno())


def _age(path: pathlib.Path) -> float:
  """Seconds since a file was written, by the clock of its file system."""
  probe = path.with_name(f'.{path.name}.{os.getpid()}.now')
  try:
    probe.touch()
    return probe.stat().st_mtime - path.stat().st_mtime
  except FileNotFoundError:
    return 0.0
  finally:
    probe.unlink(missing_ok=True)


_HELD = -1


def _beside(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'{path.name}.held')


def _locked(path: pathlib.Path) -> int | None:
  """A descriptor under the kernel's lock, `_HELD` if another process has it,
  None where the file system has no such locks."""
  for _ in range(_TRIES):
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # Of a holder that let go meanwhile the file may be gone.
      if os.path.samestat(os.fstat(descriptor), os.stat(path)):
        return descriptor
    except FileNotFoundError:
      pass
    except OSError as e:
      if e.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        os.close(descriptor)
        return None
      time.sleep(_PAUSE)
    os.close(descriptor)
  return _HELD


def _held(path: pathlib.Path) -> bool | None:
  """Whether a process holds the kernel's lock of a file; None: unknown."""
  try:
    descriptor = os.open(path, os.O_RDONLY)
  except OSError:
    return None
  try:
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except OSError as e:
    return True if e.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
  else:
    return False
  finally:
    os.close(descriptor)


def _machine() -> str:
  """The machine's id; '' in a container, which has that of its image."""
  inside = _link('/proc/self/ns/pid') != 'pid:[4026531836]'
  return '' if inside else _text('/etc/machine-id')


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
  boot = _text('/proc/sys/kernel/random/boot_id')
  stat = _text(f'/proc/{pid}/stat')
  if not boot or not stat:  # no /proc: all that live count as the same
    return 'unknown'
  # Field 2, the command, may hold spaces; 3 is the state, 22 the start.
  fields = stat.rpartition(')')[2].split()
  return None if fields[0] == 'Z' else f'{boot} {fields[19]}'


def _text(path: str) -> str:
  try:
    return pathlib.Path(path).read_text().strip()
  except OSError:
    return ''


def _link(path: str) -> str:
  try:
    return os.readlink(path)
  except OSError:
    return ''
