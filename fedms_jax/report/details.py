"""Parts of the report of one run that go into detail."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedms_jax.report import grids, page, views
from fedms_jax.report.printed import MODELS
from fedms_jax.report.runs import Run

MOST_LISTED = 200  # clients in the table of a page
_OVER = {'own': "clients' own test rows", 'pooled': 'the pooled test set'}
# Of each client, in the table of clients.
_VALUES = {'gate_weight': 'weight of the global expert'}


def confusion(run: Run) -> list[str]:
  """A section for each confusion matrix of the served model; [] without."""
  found = run.summary.get('metrics', {}).get('confusion', {})
  tables = found.get(run.served, {})
  out = []
  for over in _OVER:
    if tables.get(over):
      out.append(_matrix(run, np.array(tables[over], float), over))
  return out


def _matrix(run: Run, counts: np.ndarray, over: str) -> str:
  """counts: [C, C], rows being what is right."""
  names = _classes(run, len(counts))
  total = counts.sum(1, keepdims=True)
  shares = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
  shown = [[None if np.isnan(x) else float(x) for x in row] for row in shares]
  axes = grids.Axes(names, names, ('right', 'predicted'))
  title = f'Confusion over {_OVER[over]}'
  if not counts.sum():
    return ''
  picture = grids.heat(shown, axes, title, '{:.0%}'.format)
  caption = (
    'Of the rows of a class, in a row, the shares that are predicted as each.'
  )
  head = ['right', *map(html.escape, names)]
  rows = [
    [html.escape(name), *(f'{n:g}' for n in row)]
    for name, row in zip(names, counts, strict=True)
  ]
  table = page.table(head, rows, f'confusion-{over}')
  return page.section(
    title,
    page.charts([page.figure(picture, caption)]),
    page.folded('Numbers of rows', table),
  )


def _classes(run: Run, count: int) -> list[str]:
  """Names of the classes, where the folder has as many."""
  names = run.partition['classes'] if run.partition else []
  return names if len(names) == count else [str(i) for i in range(count)]


def clients(run: Run, models: Sequence[str]) -> str:
  """A table with a row for each evaluated client, '' if there are none."""
  columns = {m: MODELS.get(m, m) for m in models if run.per_client(m)}
  if not columns:
    return ''
  ids = run.clients(len(run.per_client(next(iter(columns)))))
  rows = _rows_of(run)
  more = {k: title for k, title in _VALUES.items() if run.per_client(k)}
  metrics = [
    k for k in run.summary['per_client'] if k.endswith(f'/{run.served}')
  ]
  cells = []
  for place, client in enumerate(ids[:MOST_LISTED]):
    row = [str(client), *rows.get(client, ('–', '–'))]
    row += [views.percent(run.per_client(m)[place]) for m in columns]
    row += [_number(run.per_client(k)[place]) for k in (*more, *metrics)]
    cells.append(row)
  head = ['client', 'training rows', 'test rows', *columns.values()]
  head += [*more.values(), *(k.partition('/')[0] for k in metrics)]
  said = f'{len(ids)} clients'
  if len(ids) > MOST_LISTED:
    said = f'The first {MOST_LISTED} of {len(ids)} clients'
  table = page.table([*map(html.escape, head)], cells, 'clients')
  note = page.paragraph(
    f"{run.summary['score'].capitalize()} in % on a client's own test rows; "
    f'metrics are of the {MODELS.get(run.served, run.served)}. All are in '
    'per_client.csv or .parquet.',
    'quiet',
  )
  return page.section('Each client', page.folded(said, table), note)


def _rows_of(run: Run) -> dict[int, tuple[str, str]]:
  """Training and test rows of the clients that partition.json counts."""
  if not run.partition:
    return {}
  train, test = (
    [str(int(np.sum(row))) for row in run.partition[name]]
    for name in ('train', 'test')
  )
  return dict(enumerate(zip(train, test, strict=True)))


def _number(value: Any) -> str:
  return f'{value:.3f}' if isinstance(value, int | float) else '–'


def settings(run: Run, defaults: Mapping[str, str]) -> str:
  """What the run was told that differs from what it would be without flags."""
  rows = [
    [f'<code>{html.escape(name)}</code>', html.escape(value) or '(empty)',
     html.escape(defaults.get(name, '–')) or '(empty)']
    for name, value in run.flags.items()
    if value != defaults.get(name)
  ]  # fmt: skip
  if not rows:
    return page.section(
      'Settings', page.paragraph('All are the defaults.', 'quiet')
    )
  table = page.table(['flag', 'this run', 'default'], rows, 'settings')
  return page.section('Settings that differ from the defaults', table)
