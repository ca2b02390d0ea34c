"""Looks up names that a user types; errors list the options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataWarning(UserWarning):
  """Data that can be used, though hardly as it was meant."""


def hint(got: str, options: Iterable[str]) -> str:
  """' Did you mean ...?' if an option resembles `got`, else ''."""
  close = difflib.get_close_matches(got, list(options), n=1)
  return f' Did you mean {close[0]!r}?' if close else ''


def pick(flag: str, got: str, options: Iterable[str], kind: str) -> str:
  """`got`, if it is one of `options`; else `ValueError` with all of them.

  `flag` says what it was given as, such as '`alpha`'; `kind` is the noun for
  the options.
  """
  options = list(options)
  if got in options:
    return got
  raise ValueError(
    f'{flag}={got!r} is no {kind}. There are: '
    f'{", ".join(options) or "none"}.{hint(got, options)}'
  )
