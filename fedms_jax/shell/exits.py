"""How a command ends: its exit code, and one line instead of a traceback.

0 done; 2 the user can mend it (flags, data, a file that cannot be read, a
non-finite loss); 75 start it again: it was asked to stop and has saved, or
storage ran out; 130 interrupted; 143 asked to stop with nothing to save.
What is left is a mistake of the program: a traceback, and Python's 1.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from fedms_jax.cluster.signals import EXIT_SAVED
from fedms_jax.persistence import files
from fedms_jax.shell import arguments

EXIT_USER = 2
EXIT_INTERRUPTED = 130  # as a shell reports SIGINT


def code_of(body: Callable[[], int], name: str = 'fedms') -> int:
  """Runs a command; gives its exit code, and says why if it failed."""
  try:
    code = body()
    sys.stdout.flush()  # here an error can still be told
    return code
  except KeyboardInterrupt:
    return _ended(f'{name}: interrupted.', EXIT_INTERRUPTED)
  except Exception as error:
    reason = files.limit(error)
    if reason is not None:
      return _ended(f'{name}: {_out_of(reason)}', EXIT_SAVED)
    if isinstance(error, ValueError | OSError):
      return _ended(f'{name}: {arguments.in_flags(error)}', EXIT_USER)
    raise


def _out_of(reason: str) -> str:
  return (
    f'storage ran out: {reason}. Make room or raise the limit, and start the '
    'same command again, a run with --resume.'
  )


def _ended(line: str, code: int) -> int:
  print(line, file=sys.stderr)
  try:
    sys.stdout.flush()
  except OSError:
    _drop(sys.stdout)  # else Python tries once more at its end
  return code


def own_process() -> None:
  """Prepares a process that does nothing but one command: who reads its
  output may leave, and threads tell of a full disk in one line, too."""
  sys.stdout, sys.stderr = _Patient(sys.stdout), _Patient(sys.stderr)
  threading.excepthook = _thread_failed


def _thread_failed(args) -> None:
  reason = files.limit(args.exc_value) if args.exc_value else None
  if reason is None:
    threading.__excepthook__(args)
  else:
    print(f'fedms: {_out_of(reason)}', file=sys.stderr)


class _Patient:
  """A stream whose reader may leave (`fedms ... | head -1`): the run goes on,
  and what it would say then is dropped."""

  def __init__(self, stream):
    self._stream = stream

  def write(self, text: str) -> int:
    try:
      return self._stream.write(text)
    except BrokenPipeError:
      _drop(self._stream)
      return len(text)

  def flush(self) -> None:
    try:
      self._stream.flush()
    except BrokenPipeError:
      _drop(self._stream)

  def __getattr__(self, name: str):
    return getattr(self._stream, name)


def _drop(stream) -> None:
  """Sends what a stream still holds, and all that follows, to nowhere."""
  try:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
  except (OSError, ValueError):  # no file below it, as in tests
    return
