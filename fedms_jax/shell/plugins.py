"""What packages of users add, by name: methods, schedules, partitions, ...

A package declares entry points in the groups `fedms_jax.<group>`, or a module
that --plugin names has dicts of the same names in capitals, `ALGORITHMS =
{'mine': ...}`. Values given from Python are added here as well, under names
that no flag can find again. What each group's values are is in BUILD.md.
Nothing of a package is imported before one of its names is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Iterator
from typing import Any

GROUPS = (
  'algorithms',
  'schedules',
  'partitions',
  'aggregators',
  'tasks',
  'sources',
  'models',
  'observers',
  'samplers',
  'metrics',
)
# What a value of a Python program is called in flags.txt, and nowhere else.
GIVEN = 'python:'

_found: dict[tuple[str, str], Any] = {}
_versions: dict[tuple[str, str], int] = {}
_modules: dict[str, Any] = {}


def add(group: str, name: str, value: Any) -> None:
  """Adds a value; one of the same name is replaced if it was given."""
  key = (group, name)
  if key in _found and _found[key] is not value:
    if not name.startswith(GIVEN):
      raise ValueError(
        f'two plugins call one of their {group} {name!r}. Rename one of '
        'them, or leave one out.'
      )
    _versions[key] = _versions.get(key, 0) + 1
  _found[key] = value


def give(group: str, name: str, value: Any) -> str:
  """Adds a value of a Python program; gives its name in a config."""
  add(group, f'{GIVEN}{name}', value)
  return f'{GIVEN}{name}'


def load(modules: str) -> None:
  """Imports modules, divided by commas, and adds what they declare.

  Raises:
    ValueError: there is no such module, or it declares nothing.
  """
  for name in filter(None, map(str.strip, modules.split(','))):
    if name in _modules:
      continue
    module = _imported(name)
    found = [(g, getattr(module, g.upper(), None) or {}) for g in GROUPS]
    if not any(values for _, values in found):
      raise ValueError(
        f'--plugin={name} declares nothing; allowed: a module with one or more '
        f'of the dicts {", ".join(g.upper() for g in GROUPS)}.'
      )
    for group, values in found:
      for key, value in values.items():
        add(group, key, value)
    _modules[name] = module


def _imported(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as e:
    if e.name is not None and not f'{name}.'.startswith(f'{e.name}.'):
      raise  # the module is there, and lacks one of its own
    raise ValueError(
      f'--plugin={name} is no module that Python finds. Install its package, '
      'or add its folder to PYTHONPATH.'
    ) from None
  except TypeError:  # a relative name
    raise ValueError(
      f'--plugin={name} is no name of a module; write package.module.'
    ) from None


@functools.cache
def _declared(group: str) -> dict[str, Any]:
  """The entry points of a group by name."""
  found = importlib.metadata.entry_points(group=f'fedms_jax.{group}')
  return {entry.name: entry for entry in found}


def has(group: str, name: Any) -> bool:
  """Whether there is such a value."""
  return (group, name) in _found or name in _declared(group)


def find(group: str, name: str) -> Any:
  """The value of a name, loaded if need be; None if there is none.

  Raises:
    ValueError: it was a value of another program, or cannot be loaded.
  """
  if (group, name) not in _found:
    if isinstance(name, str) and name.startswith(GIVEN):
      raise ValueError(
        f'{name.removeprefix(GIVEN)!r} of {group} was given from Python, where '
        'flags cannot find it. Run the program again, or make a plugin of it: '
        '`fedms new`.'
      )
    entry = _declared(group).get(name)
    if entry is None:
      return None
    try:
      add(group, name, entry.load())
    except (ImportError, AttributeError) as e:
      raise ValueError(
        f'the plugin {name!r} of {group} ({entry.value}) cannot be loaded: '
        f'{e}. Install its package again.'
      ) from e
  return _found[group, name]


def names(group: str) -> Iterator[str]:
  """All names of a group, but those given from Python."""
  if not group:
    return
  found = [name for g, name in _found if g == group]
  for name in dict.fromkeys([*found, *_declared(group)]):
    if not name.startswith(GIVEN):
      yield name


def version(group: str, name: str) -> int:
  """How often a name has got another value: two that differ in it are two."""
  return _versions.get((group, name), 0)


def said(group: str) -> str:
  """The names of a group, for a message: ', mine' or ''."""
  return ''.join(f', {name}' for name in names(group))
