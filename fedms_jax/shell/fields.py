"""Options as fields of frozen dataclasses: help, bounds, names, values.

A config is a dataclass whose leaves are made by `opt` and whose inner nodes by
`section`. Each field carries its help text, so that code, flags and `--help`
cannot drift apart. Nothing here knows which options there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from fedms_jax.shell import plugins


def opt(
  default,
  help_text,
  *,
  choices=(),
  low=None,
  high=None,
  above=None,
  was: str = '',
  plugins: str = '',
) -> Any:
  """A dataclass field with its help text and the values that it allows.

  `low` and `high` are inclusive bounds, `above` an exclusive lower bound.
  `was` is the flag's name in earlier versions, which goes on working. Names of
  the group `plugins` (see `plugins.GROUPS`) are allowed beside the choices.
  """
  metadata = {
    'help': help_text,
    'choices': tuple(choices),
    'low': low,
    'high': high,
    'above': above,
    'was': was,
    'plugins': plugins,
  }
  return dataclasses.field(default=default, metadata=metadata)


def section(cls, *, named: bool = True) -> Any:
  """A nested dataclass; its fields become flags named `section.field`, or,
  where it is not `named`, as if they were those of the dataclass around it."""
  return dataclasses.field(default_factory=cls, metadata={'named': named})


class Growing:
  """The type of a section to which fields are added while a program runs.
  type: as it is now."""

  def __init__(self, type: Any):
    self.type = type

  def __call__(self) -> Any:
    return self.type()


def _inner(config: Any, field: dataclasses.Field) -> Any:
  """The type of a section of a config, class or object; None of a leaf."""
  made = field.default_factory
  if made is dataclasses.MISSING:
    return None
  if not isinstance(config, type):
    return type(getattr(config, field.name))
  return made.type if isinstance(made, Growing) else made


def allowed(field: dataclasses.Field, value: Any) -> bool:
  """Whether a value is one of the choices of a field, if it has any."""
  rule = field.metadata
  if not rule['choices'] or value in rule['choices']:
    return True
  return bool(rule['plugins']) and plugins.has(rule['plugins'], value)


def _walk(
  config: Any, prefix: str = ''
) -> Iterator[tuple[str, list[str], Any]]:
  """(flag name, attributes on the way, field) of each leaf of a config, class
  or object."""
  for field in dataclasses.fields(config):
    inner = _inner(config, field)
    if inner is None:
      yield f'{prefix}{field.name}', [field.name], field
      continue
    if not isinstance(config, type):
      inner = getattr(config, field.name)
    named = field.metadata.get('named', True)
    below = f'{prefix}{field.name}.' if named else prefix
    for name, path, leaf in _walk(inner, below):
      yield name, [field.name, *path], leaf


def flatten(config: Any) -> dict[str, dataclasses.Field]:
  """All leaf fields of a config (class or object) by flag name."""
  return {name: field for name, _, field in _walk(config)}


def values(config: Any) -> dict[str, Any]:
  """The value of every leaf of a config object by flag name."""
  out = {}
  for name, path, _ in _walk(config):
    value = config
    for part in path:
      value = getattr(value, part)
    out[name] = value
  return out


def from_values(cls: Any, flat: Mapping[str, Any]) -> Any:
  """The config whose leaves are `flat`; absent ones keep their default. Names
  of earlier versions are taken, too.

  Raises:
    ValueError: there is no such option.
  """
  known = {name: path for name, path, _ in _walk(cls)}
  old = renamed(cls)
  nested: dict[str, Any] = {}
  for name, value in flat.items():
    name = old.get(name, name)
    if name not in known:
      raise ValueError(f'{name} is no option. Options: {", ".join(known)}.')
    place = nested
    for part in known[name][:-1]:
      place = place.setdefault(part, {})
    place[known[name][-1]] = value
  return _made(cls, nested)


def _made(cls: Any, nested: Mapping[str, Any]) -> Any:
  kwargs = dict(nested)
  for field in dataclasses.fields(cls):
    inner = _inner(cls, field)
    if inner is not None:
      kwargs[field.name] = _made(inner, nested.get(field.name, {}))
  return cls(**kwargs)


def renamed(cls: Any) -> dict[str, str]:
  """Today's name of each flag that had another one before."""
  found = {}
  for name, field in flatten(cls).items():
    if field.metadata['was']:
      found[field.metadata['was']] = name
  return found


def validate(config: Any) -> None:
  """Raises `ValueError` for the first value outside what its field allows,
  then for what a section's own `check`, if it has one, finds wrong."""
  flat = values(config)
  for name, field in flatten(config).items():
    _check(name, flat[name], field)
  for node in _sections(config):
    if hasattr(node, 'check'):
      node.check()


def _sections(config: Any) -> Iterator[Any]:
  """The inner nodes of a config object, each before the one that holds it."""
  for field in dataclasses.fields(config):
    if field.default_factory is not dataclasses.MISSING:
      yield from _sections(getattr(config, field.name))
  yield config


def _check(name: str, value: Any, field: dataclasses.Field) -> None:
  """Raises `ValueError` if `value` breaks the rule of its field."""
  rule, said = field.metadata, None
  if not allowed(field, value):
    said = ', '.join(repr(choice) for choice in rule['choices'])
  elif rule['low'] is not None and not value >= rule['low']:
    said = f'at least {rule["low"]}'
  elif rule['high'] is not None and not value <= rule['high']:
    said = f'at most {rule["high"]}'
  elif rule['above'] is not None and not value > rule['above']:
    said = f'more than {rule["above"]}'
  if said is not None:
    raise ValueError(f'--{name}={value!r} is not allowed; allowed: {said}.')
