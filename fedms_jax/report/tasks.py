"""What is said and shown of a sequence of tasks."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from fedms_jax.report import page, svg, views
from fedms_jax.systems.units import in_bytes

WIDTH, HEIGHT = 360.0, 190.0
KINDS = {'pooled': 'pooled test rows', 'own': "clients' own test rows"}
COLUMNS = {
  'acc': 'ACC',
  'aia': 'AIA',
  'forgetting': 'forgetting',
  'bwt': 'BWT',
  'fwt': 'FWT',
  'learning': 'learning',
}
_MOST = 20  # tasks that a printed matrix has


def _shown(found: Mapping[str, Any]):
  """How a score is written: in %, or in nats."""
  if not found.get('nats'):
    return views.percent
  return lambda value: '–' if value is None else f'{value:.3f}'


def _unit(found: Mapping[str, Any]) -> str:
  return 'in nats of a token, negative' if found.get('nats') else 'in %'


def _served(found: Mapping[str, Any], kind: str) -> list[list[float | None]]:
  """R of the served model, [S][T]."""
  return [step[kind][found['served']] for step in found['steps']]


def lines(found: Mapping[str, Any]) -> list[str]:
  """The lines on what summary.json holds under `tasks`, in % or nats."""
  out, shown = [], _shown(found)
  for kind, what in KINDS.items():
    for name, numbers in found['scores'][kind].items():
      told = ', '.join(
        f'{title} {shown(numbers[key])}' for key, title in COLUMNS.items()
      )
      out.append(f'tasks, {name} on {what}: {told}')
  if found['tasks'] <= _MOST:
    out.append(
      f'pooled score of the served model, by step and task, {_unit(found)}:'
    )
    for number, row in enumerate(_served(found, 'pooled'), 1):
      cells = ''.join(f'{shown(value):>7}' for value in row)
      out.append(f'  after {number:<4}{cells}')
  if 'prequential' in found:
    out.append(
      'score on rows as they arrived, before they were trained on: '
      f'{shown(found["prequential"])}'
    )
  out.append(
    f'rows of earlier tasks that a client keeps: at most '
    f'{in_bytes(found["kept_bytes"])}'
  )
  return out


def section(found: Mapping[str, Any] | None) -> str:
  """The part of a page on a sequence of tasks; '' for None."""
  if not found:
    return ''
  parts = [_numbers(found)]
  parts += [
    page.paragraph(f'{formula}.', 'quiet')
    for formula in found['formulas'].values()
  ]
  for kind, what in KINDS.items():
    title = f'{what}, served model, {_unit(found)}'
    parts.append(_matrix(found, kind, title))
  parts.append(page.charts([page.figure(_courses(_served(found, 'pooled')))]))
  if 'prequential_sliding' in found:
    course = [[value] for value in found['prequential_sliding']]
    parts.append(page.figure(_courses(course), 'Score on rows as they arrive.'))
  return page.section('Tasks', *parts)


def _numbers(found: Mapping[str, Any]) -> str:
  rows = [
    [html.escape(f'{name}, {what}')]
    + [_shown(found)(numbers[key]) for key in COLUMNS]
    for kind, what in KINDS.items()
    for name, numbers in found['scores'][kind].items()
  ]
  return page.table(['model', *COLUMNS.values()], rows, 'scores')


def _matrix(found: Mapping[str, Any], kind: str, title: str) -> str:
  before = found['before'][kind].get(found['served'])
  rows = [] if before is None else [('before', before)]
  rows += [
    (f'after step {number}', row)
    for number, row in enumerate(_served(found, kind), 1)
  ]
  head = [html.escape(title), *(f'task {t + 1}' for t in range(found['tasks']))]
  body = [[name, *map(_shown(found), row)] for name, row in rows]
  return page.table(head, body, 'matrix')


def _courses(matrix: Sequence[Sequence[float | None]]) -> str:
  """A line for each task: its score after each step."""
  x = svg.Scale(*svg.around([1.0, float(len(matrix))]), 44.0, WIDTH - 12)
  known = [v for row in matrix for v in row if v is not None]
  y = svg.Scale(*svg.around(known or [0.0], floor=0), HEIGHT - 42, 20.0)
  parts = [svg.axes(x, y, '{:g}'.format, '{:.3g}'.format, 4)]
  for task in range(len(matrix[0])):
    points = []
    for step, row in enumerate(matrix, 1):
      value = row[task]
      if value is not None:
        points.append((x(float(step)), y(value)))
    title = svg.tag('title', f'task {task + 1}')
    line = svg.line(points, 'course own') + svg.dots(points, 'clients own')
    parts.append(svg.tag('g', title, line))
  parts.append(svg.words(WIDTH - 12, HEIGHT - 6, 'step', 'label', 'end'))
  return svg.picture(WIDTH, HEIGHT, 'score of each task by step', *parts)
