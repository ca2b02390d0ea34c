"""Files of a data set: which may be opened, and whether they have changed.

What a file of the data says (a path in a row, `data_files` in README.md) is
not the user's word: it leads nowhere outside the folder that the user named.
A link in that folder is followed, for whoever made the folder made the link.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator, Sequence

Places = Sequence[pathlib.Path]  # folders in which files may be opened

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp', '.tif')
WHOLE = 64 << 20  # bytes of a file that are hashed whole
END = 1 << 20  # of a larger one: bytes of its head and of its tail


def kind(path: pathlib.Path) -> str:
  """'' for a regular file or a folder; else what it is, in words."""
  mode = os.stat(path).st_mode
  kinds = {
    stat.S_ISFIFO: 'a pipe',
    stat.S_ISSOCK: 'a socket',
    stat.S_ISCHR: 'a device',
    stat.S_ISBLK: 'a device',
  }
  return next((word for test, word in kinds.items() if test(mode)), '')


def check_openable(path: pathlib.Path) -> None:
  """Refuses what would block or never end: pipes, sockets, devices."""
  if what := kind(path):
    raise ValueError(
      f'{path} is {what}, which is not opened. Allowed: regular files.'
    )


def check_folder(folder: pathlib.Path) -> None:
  """Refuses a folder in which anything is not to be opened."""
  if folder == folder.parent:
    raise ValueError(
      f'{folder} is the root of the file system. Name the folder of the data.'
    )
  for path in _others(folder):
    with contextlib.suppress(FileNotFoundError):  # a link to nothing
      check_openable(path)


def _others(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """What is neither a plain file nor a folder, at any depth."""
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.is_dir(follow_symlinks=False):
        yield from _others(pathlib.Path(entry.path))
      elif not entry.is_file(follow_symlinks=False):
        yield pathlib.Path(entry.path)


def check_saved(folder: pathlib.Path) -> None:
  """Refuses a folder of `save_to_disk` whose own lists lead out of it."""
  splits, state = folder / 'dataset_dict.json', folder / 'state.json'
  if splits.exists():
    for name in json.loads(splits.read_text(encoding='utf-8'))['splits']:
      inside(folder / name, (folder,), splits)
      check_saved(folder / name)
  elif state.exists():
    saved = json.loads(state.read_text(encoding='utf-8'))
    for file in saved.get('_data_files') or ():
      inside(folder / file['filename'], (folder,), state)


def inside(
  path: str | os.PathLike, places: Places, who: object
) -> pathlib.Path:
  """The path, which must lie in one of the places; a relative one is in the
  first of them. who: what named it."""
  places = [pathlib.Path(os.path.abspath(place)) for place in places]
  first = places[0] if places else pathlib.Path()
  found = pathlib.Path(os.path.abspath(first / path))
  if not any(found.is_relative_to(place) for place in places):
    raise ValueError(
      f'{who} names {str(path)!r}, which is outside of the folder of the data '
      'and is not opened. Put the files into that folder.'
    )
  return found


def digest(paths: Iterable[pathlib.Path]) -> str:
  """Tells files apart by name, size and content, not by their time.

  Of files over 64 MiB it knows head and tail; of images only the size, for
  they are read anew each time.
  """
  out = hashlib.sha256()
  for path in sorted(paths):
    size = path.stat().st_size
    out.update(f'{path}\0{size}\0'.encode('utf-8', 'surrogateescape'))
    if path.suffix.lower() in IMAGE_SUFFIXES:
      continue
    with path.open('rb') as file:
      if size > WHOLE:
        out.update(file.read(END))
        file.seek(-END, os.SEEK_END)
      while piece := file.read(END):
        out.update(piece)
  return out.hexdigest()[:32]
