"""The tables of the reports as Markdown, for a README or a paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedms_jax.report import ranking, statistics, views
from fedms_jax.report.runs import Comparison, Row, Run

_SCORES = {
  'own_mean': 'own test: mean',
  'own_worst_decile': 'worst decile',
  'pooled': 'pooled test',
  'unseen': 'unseen clients',
}


def comparison(compared: Comparison) -> str:
  """The rows of a comparison, the best first: mean and standard deviation over
  seeds in %, then costs, in brackets those relative to the reference.

  The best row is bold; ≈ marks rows that are not significantly worse, see
  `statistics.verdict`. Rows of families say theirs, and those on the front of
  own and pooled rows against bytes have a dot.
  """
  rows = sorted(compared.rows, key=statistics.score, reverse=True)
  base = next((r for r in rows if r.label == compared.reference), None)
  columns = _SCORES | ranking.columns(rows)
  more = ranking.further(rows, compared)
  head = ['', *columns.values(), *more, 'active blocks', *ranking.BEHIND]
  body = []
  for i, row in enumerate(rows):
    told = [cells[i] for cells in more.values()]
    body.append(_row(row, rows[0], base, columns, told))
  return _table(head, body)


def _row(row: Row, best: Row, base: Row | None, columns, more) -> list[str]:
  scores = [' '.join(ranking.measured(row, key)).strip() for key in columns]
  if row is best:
    scores[0] = f'**{scores[0]}**'
  elif not statistics.verdict(best, row).worse:
    scores[0] += ' ≈'
  costs = [_cost(row, base, *how) for how in ranking.BEHIND.values()]
  return [row.label, *scores, *more, ranking.depths(row), *costs]


def _cost(row: Row, base: Row | None, get, show) -> str:
  value, times = ranking.relative(row, base, get)
  known = times is not None and np.isfinite(times)
  return show(value) + (f' ({times:.2f}×)' if known else '')


def single(run: Run) -> str:
  """The models of a run, in %."""
  models = run.summary['models']
  body = [
    [name, *(views.percent(scores.get(key)) for key in _SCORES)]
    for name, scores in models.items()
  ]
  return _table(['', *_SCORES.values()], body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
  lines = [head, ['---'] * len(head), *body]
  escaped = [[_escaped(cell) for cell in line] for line in lines]
  return '\n'.join(f'| {" | ".join(line)} |' for line in escaped) + '\n'


def _escaped(cell: str) -> str:
  """A cell that stays one: of one line, without what ends it."""
  one = ' '.join(cell.splitlines())
  for sign, instead in (('\\', '\\\\'), ('|', '\\|')):
    one = one.replace(sign, instead)
  return one
