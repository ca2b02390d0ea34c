"""The points of a sweep: which flags vary, and what each point is called."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from fedms_jax.launch import command
from fedms_jax.persistence import writers
from fedms_jax.shell import config as config_lib
from fedms_jax.shell import flags as fedms_flags

Point = dict[str, str]  # flag -> value

_LONGEST = 200  # of the name of a folder


def axis(text: str) -> tuple[str, list[str]]:
  """A flag and its values: 'seed=0..4' or 'partition.alpha=0.1,0.3,1'.

  Whole numbers with two dots between them are a range, both ends included.
  Values that hold commas are divided by semicolons instead.

  Raises:
    ValueError: it is not of this form, or a value comes twice.
  """
  name, given, rest = text.partition('=')
  name = name.removeprefix('--')
  parts = rest.split(';' if ';' in rest else ',')
  if not given or not name or '' in parts:
    raise ValueError(
      f"--grid={text!r} is no grid; write --grid='name=value,value' or "
      "--grid='name=0..4'."
    )
  values = [value for part in parts for value in _range(part)]
  if len(set(values)) < len(values):
    raise ValueError(f'--grid={text!r} has a value twice.')
  return fedms_flags.ALIASES.get(name, name), values


def _range(text: str) -> list[str]:
  """0..4 -> 0, 1, 2, 3, 4; anything else stands for itself."""
  match = re.fullmatch(r'(\d+)\.\.(\d+)', text)
  if match is None:
    return [text]
  low, high = int(match[1]), int(match[2])
  if high < low:
    raise ValueError(f'the range {text} is empty; write {high}..{low}.')
  return [str(number) for number in range(low, high + 1)]


def points(texts: Sequence[str], flags: Sequence[str]) -> dict[str, Point]:
  """All combinations of the axes, by name; the first axis varies slowest.

  Args:
    texts: the grids, see `axis`.
    flags: the flags that all points share.

  Raises:
    ValueError: a flag or a value that `fedms` does not take.
  """
  if not texts:
    raise ValueError("nothing varies; give --grid='name=value,value'.")
  axes = [axis(text) for text in texts]
  names = [name for name, _ in axes]
  for name in names:
    if name in fedms_flags.PER_COMMAND:
      raise ValueError(f'--{name} cannot vary; each point has its own folder.')
    if names.count(name) > 1:
      raise ValueError(f'--grid has {name} twice; give all values in one.')
  found: dict[str, Point] = {}
  for values in itertools.product(*(values for _, values in axes)):
    point = _canonical(dict(zip(names, values, strict=True)), flags)
    folder = folder_name(point)
    if folder in found:
      raise ValueError(f'two points of the grid are called {folder}.')
    found[folder] = point
  return found


def words(point: Point) -> list[str]:
  """The flags of a point."""
  return [f'--{name}={value}' for name, value in point.items()]


def folder_name(point: Point) -> str:
  """What varies, as the name of a folder: partition.alpha=0.1,seed=0."""
  pairs = (f'{name}={value}' for name, value in point.items())
  folder = ','.join(re.sub(r'[^A-Za-z0-9._=+-]', '_', pair) for pair in pairs)
  if len(folder) > _LONGEST:
    raise ValueError(f'{folder} is too long for the name of a folder.')
  return folder


def _canonical(point: Point, flags: Sequence[str]) -> Point:
  """The point with its values as flags.txt will have them, so that 1 and 1.0
  are the same point; checks the flags on the way."""
  config = command.check([*flags, *words(point)])
  text = writers.parse_flags(fedms_flags.to_text(config))
  return {name: text[name] for name in point}


def typed(name: str, value: str) -> bool | int | float | str:
  """The value of a flag in the flag's own type."""
  default = config_lib.flatten(config_lib.Config)[name].default
  if isinstance(default, bool):
    return value == 'true'
  if isinstance(default, int):
    return int(value)
  return float(value) if isinstance(default, float) else value
