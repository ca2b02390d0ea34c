"""`fedms new <folder>`: a package of one's own that runs as it is."""

from __future__ import annotations

import importlib.util
import keyword
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from fedms_jax.persistence import files
from fedms_jax.shell import flags

_TEMPLATE = pathlib.Path(__file__).parents[1] / 'template'
# Where each file of the template goes.
_FILES = {
  'pyproject.toml.txt': 'pyproject.toml',
  'README.md.txt': 'README.md',
  '__init__.py.txt': 'PACKAGE/__init__.py',
  'method.py.txt': 'PACKAGE/method.py',
  'steps.py.txt': 'PACKAGE/steps.py',
  'test.py.txt': 'tests/test_PACKAGE.py',
}


def run(words: Sequence[str], extra: dict[str, tuple[Any, str]]) -> int:
  """Writes the package and says what to do with it."""
  named = [word for word in words[1:] if not word.startswith('-')]
  rest = [word for word in words if word not in named]
  flags.parse_command(rest, extra)
  if len(named) != 1 or len(rest) > 1:
    raise ValueError('fedms new takes one folder: fedms new my_method.')
  folder = pathlib.Path(named[0])
  package = _package(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(f'{folder} is there already. Name a new folder.')
  for source, target in _FILES.items():
    text = (_TEMPLATE / source).read_text(encoding='utf-8')
    path = folder / target.replace('PACKAGE', package)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, text.replace('PACKAGE', package))
  print(
    f'wrote {folder}: a method in {package}/method.py, a schedule in '
    f'{package}/steps.py, a test\n'
    f'try it: cd {folder} && PYTHONPATH=. fedms --plugin={package} '
    f'--algorithm.name={package}'
  )
  return 0


def _package(folder: pathlib.Path) -> str:
  """The name of the package, that of the folder.

  Raises:
    ValueError: no module can be called so, or another one is.
  """
  name = folder.resolve().name.replace('-', '_')
  if not re.fullmatch('[a-z][a-z0-9_]*', name) or keyword.iskeyword(name):
    raise ValueError(
      f'{folder.resolve().name!r} is no name for a package; allowed: small '
      'letters, digits and _, a letter first. Name another folder.'
    )
  if importlib.util.find_spec(name) is not None:
    raise ValueError(
      f'Python has a module {name!r} already. Name another folder.'
    )
  return name
