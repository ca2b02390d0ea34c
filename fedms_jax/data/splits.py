"""Where `datasets` reads from: a local file or folder, or the Hub."""

from __future__ import annotations

import contextlib
import pathlib
import re
from typing import Any

from fedms_jax.data import files, formats, names

# Of a CSV file an empty cell alone has no value: a class may be called NA.
CSV = {'keep_default_na': False, 'na_values': ['']}
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


def places(source: str) -> files.Places:
  """Folders in which a source's rows may name files: that of a local source,
  and those where `datasets` keeps what it has fetched or unpacked."""
  import datasets.config
  import huggingface_hub.constants

  path = pathlib.Path(source).expanduser()
  kept = (
    datasets.config.HF_DATASETS_CACHE,
    huggingface_hub.constants.HF_HUB_CACHE,
  )
  own = [path if path.is_dir() else path.parent] if _exists(path) else []
  return [*own, *map(pathlib.Path, kept)]


def _exists(path: pathlib.Path) -> bool:
  try:
    return path.exists()
  except (OSError, ValueError):  # no system could have a file of such a name
    return False


def _open(source, embedded, subset, revision):
  path = pathlib.Path(source).expanduser()
  if _exists(path):
    if revision or (subset and path.is_file()):
      raise ValueError(
        f'`source`={source} is local: `revision`={revision!r} must '
        f'be empty, and for a file `subset`={subset!r} too.'
      )
    return _local(path, subset)
  shown = source if len(source) <= 200 else f'{source[:200]}...'
  tried = (
    f'`source`={shown!r} is not embedded ({", ".join(embedded)}) and no '
    'local file or folder'
  )
  hint = '' if '/' in source else names.hint(source, embedded)
  hub_id = re.fullmatch(r'\w[\w.-]{0,95}(/\w[\w.-]{0,95})?', source, re.ASCII)
  if hint or not hub_id or path.suffix in FORMATS:
    # Asking the Hub can take half a minute where there is no network.
    raise ValueError(f'{tried}; as a Hub id it was not tried.{hint}')
  try:
    return _load(source, subset, revision=revision or None)
  except Exception as error:  # of any library under `datasets`
    raise ValueError(
      f'{tried}; from the Hub it cannot be read: {_cause(error)}. Check '
      'the name, the network, and `subset`.'
    ) from error


def _local(path, subset):
  import datasets

  try:
    if path.is_dir():
      files.check_folder(path.resolve())
      saved = ('state.json', 'dataset_dict.json')
      if any((path / name).exists() for name in saved):
        files.check_saved(path)
        saved = datasets.load_from_disk(str(path))
        return saved if isinstance(saved, dict) else {'train': saved}
    else:
      files.check_openable(path)
    found = formats.read(path)
    if found is not None:
      return found
    if path.is_dir():
      return _load(str(path), subset, folder=path)
    if kind := FORMATS.get(path.suffix.lower()):
      data_files = {'train': str(path)}
      return _load(kind, subset, folder=path.parent, data_files=data_files)
  except Exception as error:  # of any library under `datasets`
    raise ValueError(
      f'`source`={path} cannot be read: {_cause(error)}. Allowed: a '
      f'folder of {", ".join(FORMATS)} files, or of images in one folder per '
      'label, or one file; or LEAF, idx or .npz files.'
    ) from error
  raise ValueError(
    f'`source`={path} is no file that can be read. Allowed: '
    f'{", ".join(FORMATS)}, .npz, idx files, or a folder.'
  )


@contextlib.contextmanager
def _silent():
  """Without the log of `datasets`, which tells an error before it raises it."""
  import datasets

  before = datasets.logging.get_verbosity()
  datasets.logging.set_verbosity(datasets.logging.CRITICAL)
  try:
    yield
  finally:
    datasets.logging.set_verbosity(before)


@_silent()
def _load(path, subset, folder=None, **kwargs):
  """The splits that `datasets` finds. folder: of local data, whose cache is
  told apart by what its files hold: `datasets` itself looks at their time."""
  import datasets.config

  builder = datasets.load_dataset_builder(path, subset or None, **kwargs)
  if folder is not None:
    found = [
      files.inside(name, (folder,), f'a file of {folder}')
      for names in (builder.config.data_files or {}).values()
      for name in names
    ]
    cache = pathlib.Path(datasets.config.HF_DATASETS_CACHE, 'fedms_jax')
    kwargs |= {'cache_dir': str(cache / files.digest(found))}
  if hasattr(builder.config, 'keep_default_na'):
    kwargs |= CSV
  return datasets.load_dataset(path, subset or None, **kwargs)


def _cause(error: BaseException) -> str:
  """The first line of an error, or of its cause where it does not say it."""
  import datasets.exceptions

  vague = datasets.exceptions.DatasetGenerationError
  while isinstance(error, vague) and error.__cause__:
    error = error.__cause__
  if isinstance(error, StopIteration):  # of the first row
    return 'it has no rows'
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0].rstrip('.')
