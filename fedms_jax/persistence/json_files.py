"""JSON files that others wrote: an object, or a message that names the file."""

from __future__ import annotations

import json
import pathlib
from typing import Any

_POINTER = b'version https://git-lfs.github.com/spec'
FETCH = (
  'is a pointer that Git LFS has not replaced by the file; run: git lfs pull'
)


def is_pointer(start: bytes) -> bool:
  """Whether a file that starts so stands for one that was not fetched."""
  return start.startswith(_POINTER)


def read(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file; {} if there is no such file.

  Raises:
    ValueError: it cannot be read, or is no object of JSON.
  """
  if not path.is_file():
    return {}
  try:
    data = path.read_bytes()
  except OSError as error:
    raise ValueError(f'{path} cannot be read: {error.strerror}.') from error
  if is_pointer(data):
    raise ValueError(f'{path} {FETCH}.')
  try:
    found = json.loads(data.decode('utf-8'), parse_constant=_refused)
  except (ValueError, RecursionError) as error:
    said = 'too deeply nested' if isinstance(error, RecursionError) else error
    raise ValueError(
      f'{path} is no JSON: {said}. Mend the file, or fetch it again.'
    ) from error
  if not isinstance(found, dict):
    raise ValueError(
      f'{path} holds a {type(found).__name__}; allowed: an object, {{...}}. '
      'Mend the file, or fetch it again.'
    )
  return found


def _refused(constant: str):
  raise ValueError(f'{constant} is no number')
