"""Which class of the data is which output of a trained head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def order(
  outputs: Sequence[str], names: Sequence[str], where: str
) -> list[int]:
  """For each class of the data, the output of the head that is its own.

  Names are matched whatever their case; classes that the data only numbers, by
  number. Without names, or with `LABEL_0` and its like, the outputs are those
  of the data in its order.

  Args:
    outputs: the names that the head was trained with; () if nothing says.
    names: of the classes of the data.
    where: the head is from, for messages.

  Raises:
    ValueError: the names are not those of the data.
  """
  if _plain_numbers(outputs):
    return list(range(len(names)))
  found = {_plain(name): i for i, name in enumerate(outputs)}
  wanted = [_plain(name) for name in names]
  numbers = list(map(str, range(len(outputs))))
  if sorted(wanted) == sorted(numbers) and not found.keys() & set(numbers):
    return list(map(int, wanted))
  if len(found) != len(outputs) or sorted(found) != sorted(wanted):
    raise ValueError(
      f'the head in {where} knows the classes {_shown(outputs)}, and the data '
      f'has {_shown(names)}; allowed: the same names. Rename the classes of '
      'one of them, or train a new head.'
    )
  return [found[name] for name in wanted]


def named(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
  """The names of a head's outputs in order, of `id2label` and `label2id` of
  a config.json; () if it has neither.

  Raises:
    ValueError: they are of a wrong type, leave outputs out, or disagree.
  """
  by_number, by_name = config.get('id2label'), config.get('label2id')
  tables = []
  if by_number is not None:
    tables.append(_numbered(by_number, where))
  if isinstance(by_name, dict) and by_name:
    turned = {str(number): name for name, number in by_name.items()}
    if len(turned) < len(by_name):
      raise ValueError(
        f'{where} has label2id={by_name!r}; allowed: one name for each number.'
      )
    tables.append(_numbered(turned, where, 'label2id'))
  # One of them is often left as it was made.
  said = [table for table in tables if not _plain_numbers(table)]
  if len(set(said)) > 1:
    raise ValueError(
      f'{where} has id2label and label2id of different classes; allowed: the '
      'same. Mend one of them.'
    )
  return next(iter(said or tables), ())


def _plain_numbers(outputs: Sequence[str]) -> bool:
  """Whether the names say nothing, as those that transformers makes."""
  return all(re.fullmatch(r'LABEL_\d+', name) for name in outputs)


def _numbered(found: Any, where: str, key: str = 'id2label') -> tuple[str, ...]:
  numbers = list(map(str, range(len(found)))) if isinstance(found, dict) else []
  if not isinstance(found, dict) or set(found) != set(numbers):
    raise ValueError(
      f'{where} has {key}={found!r}; allowed: a name for each number from 0.'
    )
  return tuple(str(found[number]) for number in numbers)


def _plain(name: str) -> str:
  return name.strip().casefold()


def _shown(names: Sequence[str], most: int = 10) -> str:
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more
