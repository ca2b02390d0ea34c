"""How the value of one flag is read."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from fedms_jax.shell import fields, plugins


class Parser(absl_flags.ArgumentParser):
  """Reads one value of the field's type, and only finite numbers."""

  def __init__(self, kind: type, field: dataclasses.Field | None = None):
    self.kind = kind
    self.field = field

  def parse(self, argument: Any) -> Any:
    if not isinstance(argument, str):  # a default, already of its type
      return argument
    if self.field is not None and not fields.allowed(self.field, argument):
      choices = self.field.metadata['choices']
      hint = did_you_mean(argument, choices)
      choices = (*choices, *plugins.names(self.field.metadata['plugins']))
      allowed = ', '.join(repr(choice) for choice in choices)
      raise ValueError(f'not one of {allowed}.{hint}')
    if self.kind is bool:
      return _boolean(argument)
    try:
      value = self.kind(argument)
    except ValueError:
      name = {int: 'a whole number', float: 'a number'}[self.kind]
      raise ValueError(f'not {name}.') from None
    if self.kind is float and not math.isfinite(value):
      raise ValueError('not a finite number.')
    return value

  def flag_type(self) -> str:
    return self.kind.__name__


def _boolean(text: str) -> bool:
  values = {'true': True, '1': True, 'false': False, '0': False}
  if text.lower() not in values:
    raise ValueError('not one of true, false, 1, 0.')
  return values[text.lower()]


def did_you_mean(word: str, options: Sequence[str], prefix: str = '') -> str:
  """' Did you mean ...?' with the options nearest to `word`, or ''.

  Of dotted names the last part alone counts too: --rank is near --lora.rank.
  """
  last = [name for name in options if name.rpartition('.')[2] == word]
  near = last or difflib.get_close_matches(word, options, n=3)
  hint = ' or '.join(prefix + name for name in near)
  return f' Did you mean {hint}?' if near else ''
