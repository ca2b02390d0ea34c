"""Files that are there whole or not at all, and the limits of their storage."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

# What runs out: room on a disk or of a user's share, the size of a file, open
# files of a process or of the machine. Who makes room can go on.
LIMITS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EMFILE,
  errno.ENFILE,
)
# As libraries tell it that keep no `errno`; LMDB of its own map.
_SAID = (*map(os.strerror, LIMITS), 'MDB_MAP_FULL')


def limit(error: BaseException) -> str | None:
  """Which limit of storage an error is about, in one line; None: about none.

  Looks at what caused it and at what was being handled, too: libraries wrap
  errors of the disk, and threads and closing files add their own.
  """
  seen, queue = set(), [error]
  while queue:
    e = queue.pop(0)
    if id(e) in seen:
      continue
    seen.add(id(e))
    if isinstance(e, OSError) and e.errno in LIMITS:
      where = f': {e.filename}' if e.filename else ''
      return f'{os.strerror(e.errno)}{where}'
    said = str(e)
    if isinstance(e, StorageError):
      return said
    found = next((text for text in _SAID if text in said), None)
    if found is not None:
      return found  # the rest is not written for people
    queue += [x for x in (e.__cause__, e.__context__) if x is not None]
    queue += getattr(e, 'exceptions', ())
  return None


class StorageError(OSError):
  """Storage failed below a library that raises errors of its own."""


@contextlib.contextmanager
def storage(what: str, kinds: type[Exception] | tuple) -> Iterator[None]:
  """Turns errors of a library's storage into one line on `what`."""
  try:
    yield
  except kinds as e:
    reason = limit(e) or f'{type(e).__name__}: {str(e).splitlines()[0][:200]}'
    raise StorageError(f'{what}: {reason}') from e


def write_whole(path: pathlib.Path, write: Callable[[BinaryIO], Any]) -> None:
  """Writes a file that is there whole or not at all, also after a power cut.

  A link is followed, so that what it names is replaced and not the link.

  Raises:
    ValueError: something is there that is no file, such as a device; to
      replace it would take it from everybody.
  """
  path = _target(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'wb') as file:
      write(file)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  sync_folder(path.parent)


def write_atomic(path: pathlib.Path, text: str) -> None:
  """Writes a text file, see `write_whole`."""
  write_whole(path, lambda file: file.write(text.encode()))


def sync_folder(folder: pathlib.Path) -> None:
  """Returns when the names in a folder would survive a loss of power."""
  with contextlib.suppress(OSError):  # some file systems know no such thing
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def check_descriptors(count: int) -> None:
  """Raises the `OSError` now if so many files cannot be opened: a library that
  starts and finds none cannot always say so in one line."""
  with contextlib.ExitStack() as stack:
    for _ in range(count):
      stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def sync_tree(root: pathlib.Path) -> None:
  """Returns when a folder and all in it would survive a loss of power."""
  for folder, _, names in os.walk(root, topdown=False):
    for name in names:
      with open(os.path.join(folder, name), 'rb') as file:
        os.fsync(file.fileno())
    sync_folder(pathlib.Path(folder))


def read_json(path: pathlib.Path) -> Any:
  """What a JSON file of ours holds.

  Raises:
    ValueError: it is empty or damaged.
  """
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise ValueError(
      f'{path} is damaged ({e}). Start its run again with `resume`, which '
      'writes the file anew.'
    ) from None


def _target(path: pathlib.Path) -> pathlib.Path:
  """Where a file of this name is to be put."""
  try:
    mode = os.stat(path).st_mode
  except FileNotFoundError:
    return pathlib.Path(os.path.realpath(path))
  if not stat.S_ISREG(mode):
    kind = 'folder' if stat.S_ISDIR(mode) else 'device or pipe'
    raise ValueError(
      f'{path} is a {kind}, which no file can replace. Name a file.'
    )
  return pathlib.Path(os.path.realpath(path))
