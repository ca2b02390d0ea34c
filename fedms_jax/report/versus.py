"""The report of a comparison: rows of runs that differ by their seed."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

from fedms_jax.report import (
  families,
  figures,
  page,
  ranking,
  statistics,
  views,
)
from fedms_jax.report.runs import Comparison, Row, command

_NAMED = 8  # rows that are named in a line


def report(compared: Comparison, defaults: Mapping[str, str]) -> str:
  """The page of a comparison. defaults: flag values that are left out of
  commands."""
  rows = sorted(compared.rows, key=statistics.score, reverse=True)
  score = rows[0].runs[0].summary['score']
  return page.document(
    compared.title,
    _lead(rows, score),
    ranking.section(rows, compared, score),
    _missing(compared),
    families.section(rows),
    page.section(
      f'{score.capitalize()} against costs',
      page.charts([_cost(rows, *cost) for cost in ranking.costs(rows).items()]),
      page.paragraph(
        'Numbers are those of the table; bars are one standard deviation over '
        'seeds. Filled points are on the Pareto front: no other row has more '
        'for the same or less.',
        'quiet',
      ),
    ),
    _rounds(rows),
    page.beside(
      page.section('Clients', page.charts([_clients(rows, score)])),
      views.gates(rows),
      views.partition(rows[0].runs[0]),
    ),
    _search(compared),
    _again(rows, compared, defaults),
    css=families.css(rows),
  )


def _lead(rows: Sequence[Row], score: str) -> str:
  best = rows[0]
  tied = [
    row.label for row in rows[1:] if not statistics.verdict(best, row).worse
  ]
  line = f"Best {score} on clients' own test rows: {best.label}"
  if tied:
    line += f'; not significantly worse: {", ".join(tied[:_NAMED])}'
    if len(tied) > _NAMED:
      line += f' and {len(tied) - _NAMED} more'
  seeds = sorted({r.seed for row in rows for r in row.runs})
  every = [run for row in rows for run in row.runs]
  told = f'{len(rows)} rows, seeds {", ".join(map(str, seeds))}.'
  return page.paragraph(f'{line}.', 'lead') + page.paragraph(
    f'{views.world(every)} {told}'
  )


def _missing(compared: Comparison) -> str:
  if not compared.missing:
    return ''
  items = ''.join(
    f'<li><b>{html.escape(k)}</b>: {html.escape(v)}</li>'
    for k, v in compared.missing.items()
  )
  return page.section('Without a result', f'<ul class="missing">{items}</ul>')


def _cost(rows: Sequence[Row], title: str, cost: ranking.Cost) -> str:
  get, show = cost
  points = []
  for i, row in enumerate(rows):
    found = statistics.spread([run.score for run in row.runs])
    points.append(
      figures.Point(
        i + 1,
        row.label,
        float(np.mean([get(run) for run in row.runs])),
        100 * found.mean,
        None if found.deviation is None else 100 * found.deviation,
        families.number(rows, row),
      )
    )
  names = [
    f'{points[i].number} {points[i].label}'
    for i in statistics.front([(p.x, p.y) for p in points])
  ]
  picture = figures.costs(points, title, show)
  return page.figure(picture, f'On the front: {", ".join(names)}.')


def _rounds(rows: Sequence[Row]) -> str:
  several = max(len(row.runs) for row in rows) > 1
  watched: dict[str, list[Row]] = {}  # what is on a scale of its own
  for row in rows:
    kind = row.runs[0].flags.get('schedule.score', 'validation')
    watched.setdefault(kind, []).append(row)
  depths = views.courses(rows, 'depth', floor=0, also=(0, 1))
  parts = [_many(rows, 'Active blocks by round', page.charts(depths, 'small'))]
  for kind, those in watched.items():
    title = f'Capability ({kind}) by round, which the schedule sees'
    drawn = views.courses(those, 'capability', f'watched-{kind}')
    parts.append(_many(rows, title, page.charts(drawn, 'small')))
  return page.section(
    'Rounds',
    *parts,
    page.paragraph(
      'The other rows are behind in gray. A dashed line is where a stage '
      'begins.' + (' One line for each seed.' if several else ''),
      'quiet',
    ),
  )


def _many(rows: Sequence[Row], title: str, drawn: str) -> str:
  """What is drawn for each row; of many rows it is to be opened."""
  if len(rows) > figures.CROWD:
    return page.folded(title, drawn)
  return page.paragraph(title) + drawn


def _clients(rows: Sequence[Row], score: str) -> str:
  found = [
    (f'{i + 1} {row.label}',
     views.named(row.runs, row.runs[0].served))
    for i, row in enumerate(rows)
  ]  # fmt: skip
  drawn = views.accuracies(found, score)
  many = len(rows) > figures.CROWD
  return page.folded('Each client, by row', drawn) if many else drawn


def _search(compared: Comparison) -> str:
  """Validation scores of the learning rates that were tried."""
  if not compared.search:
    return ''
  rates = list(dict.fromkeys(r for s in compared.search.values() for r in s))
  rates.sort(key=float)
  rows, edges = [], []
  for label, scores in compared.search.items():
    known = {r: s for r, s in scores.items() if s is not None}
    best = max(known, key=known.__getitem__) if known else None
    tried = sorted(scores, key=float)
    if best in (tried[0], tried[-1]) and len(tried) > 1:
      edges.append(label)
    cells = [
      f'<td{" class=top" if rate == best else ""}>'
      f'{views.percent(scores.get(rate))}</td>'
      for rate in rates
    ]
    rows.append([html.escape(label), *cells])
  text = (
    'Mean validation score over the last quarter of a shortened run on the '
    'first seed; the best rate (bold) is used for all seeds. No test row is '
    'looked at. – is a run that diverged or was not possible.'
  )
  if edges:
    text += f' The best is at the edge of what was tried: {", ".join(edges)}.'
  return page.section(
    'Learning rates', page.table(['', *rates], rows, 'search'),
    page.paragraph(text, 'quiet'),
  )  # fmt: skip


def _again(rows, compared: Comparison, defaults) -> str:
  codes = [
    page.code(
      f'{row.label}{f" ({row.note})" if row.note else ""}',
      command(row.runs, defaults),
    )
    for row in rows
  ]
  return page.section(
    'The same again',
    page.paragraph('The flags that repeat each row:'),
    *codes,
    *(page.paragraph(line, 'quiet') for line in compared.notes),
  )
