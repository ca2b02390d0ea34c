"""Where `datasets` reads from: a local file or folder, or the Hub."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from fedms_jax.data import names

FORMATS = {
  '.parquet': 'parquet',
  '.arrow': 'arrow',
  '.csv': 'csv',
  '.json': 'json',
  '.jsonl': 'json',
}


def read(
  source: str,
  *,
  embedded: tuple[str, ...],
  subset: str,
  revision: str,
  train_split: str,
  test_split: str,
) -> tuple[Any, Any]:
  """The training and the test split (None if there is none) of a source.

  Raises `ValueError` that says what was tried if nothing can be read.
  """
  if train_split == test_split == 'test':
    test_split = ''  # its default; the rows of such a source are dealt whole
  if not train_split or train_split == test_split:
    raise ValueError(
      f'`train_split`={train_split!r} and `test_split`='
      f'{test_split!r}: they must be two splits, or the test split empty.'
    )
  splits = _open(source, embedded, subset, revision)
  names.pick('`train_split`', train_split, map(str, splits), 'split')
  if test_split not in splits:
    # Many sources have no test split, and its name has a default.
    if test_split not in ('', 'test'):
      names.pick('`test_split`', test_split, map(str, splits), 'split')
    return splits[train_split], None
  return splits[train_split], splits[test_split]


def _open(source, embedded, subset, revision):
  path = pathlib.Path(source).expanduser()
  if path.exists():
    if revision or (subset and path.is_file()):
      raise ValueError(
        f'`source`={source} is local: `revision`={revision!r} must '
        f'be empty, and for a file `subset`={subset!r} too.'
      )
    return _local(path, subset)
  tried = (
    f'`source`={source!r} is not embedded ({", ".join(embedded)}) and no '
    'local file or folder'
  )
  hint = '' if '/' in source else names.hint(source, embedded)
  hub_id = re.fullmatch(r'\w[\w.-]*(/\w[\w.-]*)?', source, re.ASCII)
  if hint or not hub_id or path.suffix in FORMATS:
    # Asking the Hub can take half a minute where there is no network.
    raise ValueError(f'{tried}; as a Hub id it was not tried.{hint}')
  try:
    return _load(source, subset, revision=revision or None)
  except Exception as error:  # of any library under `datasets`
    raise ValueError(
      f'{tried}; from the Hub it cannot be read: {_first_line(error)}. Check '
      'the name, the network, and `subset`.'
    ) from error


def _local(path, subset):
  import datasets

  try:
    if path.is_dir():
      if any(
        (path / name).exists() for name in ('state.json', 'dataset_dict.json')
      ):
        saved = datasets.load_from_disk(str(path))
        return saved if isinstance(saved, dict) else {'train': saved}
      return _load(str(path), subset)
    if path.suffix.lower() in FORMATS:
      return _load(
        FORMATS[path.suffix.lower()], subset, data_files={'train': str(path)}
      )
  except Exception as error:  # of any library under `datasets`
    raise ValueError(
      f'`source`={path} cannot be read: {_first_line(error)}. Allowed: a '
      f'folder of {", ".join(FORMATS)} files, or of images in one folder per '
      'label, or one file.'
    ) from error
  raise ValueError(
    f'`source`={path} is no file that can be read. Allowed: '
    f'{", ".join(FORMATS)}, or a folder.'
  )


def _load(path, subset, **kwargs):
  import datasets

  return datasets.load_dataset(path, subset or None, **kwargs)


def _first_line(error):
  return (
    (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')
  )
