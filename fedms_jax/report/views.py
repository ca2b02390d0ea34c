"""Parts that the reports of a run and of a comparison share."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from fedms_jax.report import figures, grids, page
from fedms_jax.report.runs import Row, Run
from fedms_jax.systems.units import in_bytes, in_flops

BY_CLASS = 'gate_weight_by_class'


def percent(value: float | None) -> str:
  return '–' if value is None else f'{100 * value:.1f}'


def size(value: float) -> str:
  return in_bytes(value)


def flops(value: float) -> str:
  return in_flops(value)


def seconds(value: float) -> str:
  return f'{value:.3g} s' if value < 600 else f'{value / 60:.3g} min'


_WORLD = {
  'data': 'data.source',
  'partition': 'partition.name',
  'clients': 'partition.num_clients',
  'model': 'model.name',
  'algorithm': 'algorithm.name',
  'schedule': 'schedule.name',
}


def world(runs: Sequence[Run]) -> str:
  """Data, clients, model and method that the runs share, in one line."""
  told = []
  flags = [run.flags | {'partition.name': run.dealt} for run in runs]
  for title, flag in _WORLD.items():
    values = {found.get(flag) for found in flags}
    if len(values) == 1 and values != {''}:
      told.append(f'{title} {values.pop()}')
  text = ', '.join(told)
  return f'{text[:1].upper()}{text[1:]}.'


def courses(
  rows: Sequence[Row], field: str, name: str = '', **bounds
) -> list[str]:
  """A value of the rounds: a figure for each row, a line for each seed.

  name: if the page shows the same value of other rows, too.
  """
  panels = [
    figures.Course(row.label, [[r.get(field) for r in run.records]
                               for run in row.runs])
    for row in rows
  ]  # fmt: skip
  cuts = _cuts(rows[0].runs[0])
  if any(_cuts(row.runs[0]) != cuts for row in rows):
    cuts = []  # the panels share their axes
  found = figures.courses(panels, name or field, '{:g}'.format, cuts, **bounds)
  return [page.figure(p) for p in found]


def _cuts(run: Run) -> list[int]:
  """How many rounds there were when each later stage began."""
  stages = [r['stage'] for r in run.records]
  return [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]


Named = list[tuple[str, float | None]]


def accuracies(rows: Sequence[tuple[str, Named]], score) -> str:
  """The score of each client, who is called by a name, in %."""
  found = []
  for label, values in rows:
    known = [100 * v for _, v in values if v is not None]
    names = [name for name, v in values if v is not None]
    if known:
      note = f'{np.mean(known):.1f} ± {np.std(known):.1f}'
      found.append(grids.Strip(label, known, note, names))
  if not found:
    return ''
  return page.figure(
    grids.strips(found, f'{score} of a client, in %', 100.0),
    'A dot is a client on its own test rows; the bar is the middle half, the '
    'tick the mean. At the right: mean ± standard deviation over clients. A '
    'pointer is told who it is.',
  )


def gates(rows: Sequence[Row]) -> str:
  """How the gate weighs the global expert: by client, and by class."""
  found, maps = [], []
  for row in rows:
    known = [x for x in named(row.runs, 'gate_weight') if x[1] is not None]
    values = [value for _, value in known if value is not None]
    if values:
      note = f'{min(values):.2f} to {max(values):.2f}'
      names = [name for name, _ in known]
      found.append(grids.Strip(row.label, values, note, names))
      maps += _gate_by_class(row.label, row.runs[0])
  if not found:
    return ''
  strips = grids.strips(found, 'weight of the global expert', 1.0)
  caption = "A dot is the mean over a client's own test rows."
  by_class = page.charts(maps)
  if len(maps) > 2:
    by_class = page.folded('By client and class', by_class)
  return page.section(
    'Gate', page.charts([page.figure(strips, caption)]), by_class
  )


def named(runs: Sequence[Run], name: str) -> Named:
  """A value of each evaluated client of some runs, with what it is called."""
  out = []
  for run in runs:
    values = run.per_client(name)
    if not values:
      continue
    seed = f', seed {run.seed}' if len(runs) > 1 else ''
    out += [
      (f'client {client}{seed}', value)
      for client, value in zip(run.clients(len(values)), values, strict=True)
    ]
  return out


def _gate_by_class(label: str, run: Run) -> list[str]:
  by_class = run.summary['per_client'].get(BY_CLASS)
  if not by_class:
    return []
  title = f'{label}, seed {run.seed}'
  known = [w for row in by_class.values() for w in row if w is not None]
  if not known:
    return []
  rows = list(by_class.values())
  names = [str(i) for i in run.clients(len(rows[0]))]
  picture = grids.heat(
    rows, grids.Axes(list(by_class), names), f'gate weight: {title}'
  )
  caption = (
    f'{title}: a row is a class of the pooled test set, a column a client'
    f'{_cut(by_class)}; the color is the weight of the global expert, on a '
    'scale of its own.'
  )
  return [page.figure(picture, caption)]


def partition(run: Run) -> str:
  """Who has which labels."""
  if not run.partition:
    return ''
  counts = np.array(run.partition['train'])
  if not counts.size or counts.shape[1] < 2:
    return ''
  rows = counts.sum(1)
  present = counts.sum(0) > 0
  classes = [c for c, on in zip(run.partition['classes'], present, strict=True)
             if on]  # fmt: skip
  picture = grids.bubbles(
    counts[:, present].T.tolist(),
    grids.clients(classes, len(rows)),
    'training rows by client and class',
  )
  caption = (
    f'Training rows of each class (area) for each client, seed {run.seed}; '
    f'{run.partition["clients"]} clients with {rows.min()} to {rows.max()} '
    f'rows{_cut(dict.fromkeys(classes, rows))}'
    f'{run.dealt and f"; partition {run.dealt}"}.'
  )
  return page.section('Partition', page.charts([page.figure(picture, caption)]))


def _cut(by_class) -> str:
  """Says what a grid leaves out."""
  clients = len(next(iter(by_class.values())))
  out = []
  if clients > grids.MOST_CLIENTS:
    out.append(f'the first {grids.MOST_CLIENTS} clients')
  if len(by_class) > grids.MOST_CLASSES:
    out.append(f'the first {grids.MOST_CLASSES} classes')
  return f' ({" and ".join(out)})' if out else ''


def name(number: int, label: str) -> str:
  """The first cell of a numbered row."""
  return f'<span class="row-number">{number}</span>{html.escape(label)}'
