"""Rows by family: what is shown of them, and the best of each.

What is hidden is hidden by CSS alone: an element of a family has its number as
`data-group`, a row on the front has `data-front`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from fedms_jax.report import page, statistics, views
from fedms_jax.report.runs import Row

_ONLY = 'front-only'


def families(rows: Sequence[Row]) -> list[str]:
  """The families that rows belong to, by their first row; [] if to none."""
  return list(dict.fromkeys(row.group for row in rows if row.group))


def number(rows: Sequence[Row], row: Row) -> int | None:
  """The number of the family of a row; None: it belongs to none."""
  return families(rows).index(row.group) if row.group else None


def front(rows: Sequence[Row]) -> set[str]:
  """Labels of the rows that no other one beats: none scores as much on own and
  on pooled rows for as few bytes, and differs. A row without a pooled score is
  not among them."""
  labels: list[str] = []
  points: list[tuple[float, ...]] = []
  for row in rows:
    pooled = _pooled(row)
    if pooled is not None:
      labels.append(row.label)
      points.append((statistics.score(row), pooled, -_bytes(row)))
  return {labels[i] for i in statistics.undominated(points)}


def marks(rows: Sequence[Row]) -> list[str]:
  """Attributes of the rows of a table, by which they are hidden."""
  best, found = front(rows), []
  for row in rows:
    at = number(rows, row)
    group = '' if at is None else f' data-group="{at}"'
    found.append(group + (' data-front=""' if row.label in best else ''))
  return found


def css(rows: Sequence[Row]) -> str:
  """How the choices of `filters` hide what belongs to a family, and what is
  not on the front."""
  names = families(rows)
  if not names:
    return ''
  hidden = [
    f'main:has(#show-{i}:not(:checked)) [data-group="{i}"]'
    for i in range(len(names))
  ]
  hidden.append(
    f'main:has(#{_ONLY}:checked) #comparison tbody tr:not([data-front])'
  )
  # On paper there are no choices, and all is shown.
  return f'@media screen{{{",".join(hidden)}{{display:none}}}}'


def filters(rows: Sequence[Row]) -> str:
  """A choice for each family, and one of the front alone; '' for no family."""
  names = families(rows)
  if not names:
    return ''

  def choice(name: str, text: str, checked: str) -> str:
    box = f'<input type="checkbox" id="{name}"{checked}>'
    return f'<label>{box} {html.escape(text)}</label>'

  boxes = [
    choice(f'show-{i}', f'{name} ({_count(rows, name)})', ' checked')
    for i, name in enumerate(names)
  ]
  boxes.append(choice(_ONLY, f'the front alone ({len(front(rows))})', ''))
  return f'<fieldset><legend>Rows</legend>{"".join(boxes)}</fieldset>'


def section(rows: Sequence[Row]) -> str:
  """The best row of each family. rows: the best first."""
  names, best = families(rows), front(rows)
  if len(names) < 2:
    return ''
  body = []
  for name in names:
    mine = [row for row in rows if row.group == name]
    pooled = _pooled(mine[0])
    body.append([
      html.escape(name),
      str(len(mine)),
      str(sum(row.label in best for row in mine)),
      html.escape(mine[0].label),
      views.percent(statistics.score(mine[0])),
      views.percent(pooled),
      html.escape(views.size(_bytes(mine[0]))),
    ])  # fmt: skip
  head = ['', 'rows', 'on the front', 'best', 'own test: mean', 'pooled test',
          'bytes']  # fmt: skip
  return page.section(
    'By family',
    page.table(head, body, 'families'),
    page.paragraph(
      "The best row of a family is that of clients' own test rows.", 'quiet'
    ),
  )


def _count(rows: Sequence[Row], name: str) -> int:
  return sum(row.group == name for row in rows)


def _pooled(row: Row) -> float | None:
  found = statistics.measure([run.scores.get('pooled') for run in row.runs])
  return None if found is None else found.mean


def _bytes(row: Row) -> float:
  return float(np.mean([statistics.volume(run) for run in row.runs]))
