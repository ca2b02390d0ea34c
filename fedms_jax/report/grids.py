"""Figures of clients and classes: strips of dots, and grids of cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedms_jax.report import svg
from fedms_jax.report.figures import WIDTH, short

MOST_CLIENTS, MOST_CLASSES = 60, 40  # that a grid shows
_SHADES = 24  # of a legend


class Strip(NamedTuple):
  """A value of each client. note: shown at the end of the line. names: of the
  dots, what a pointer is told; (): nothing."""

  label: str
  values: Sequence[float]
  note: str = ''
  names: Sequence[str] = ()


def strips(found: Sequence[Strip], title: str, high: float) -> str:
  """A dot for each client, the middle half as a bar, the mean as a tick; 0, or
  the least value under it, to `high`."""
  low = min(0.0, *(min(strip.values) for strip in found))
  x = svg.Scale(low, high, 10.0, WIDTH - 12)
  bottom = 38.0 * len(found) + 4
  parts = [_ruler(x, bottom)]
  for i, strip in enumerate(found):
    parts.append(_strip(strip, x, 38.0 * i))
  parts.append(svg.words(WIDTH - 12, bottom + 30, title, 'label', 'end'))
  return svg.picture(WIDTH, bottom + 36, title, *parts)


def _strip(strip: Strip, x: svg.Scale, top: float) -> str:
  middle = top + 27
  jitter = (np.arange(len(strip.values)) * 0.618034) % 1 - 0.5
  places = [
    (x(v), middle + 11 * j) for v, j in zip(strip.values, jitter, strict=True)
  ]
  low, high = np.quantile(strip.values, [0.25, 0.75])
  mean = x(float(np.mean(strip.values)))
  said = [
    (*place, f'{name}: {value:.4g}')
    for place, name, value in zip(
      places, strip.names, strip.values, strict=False
    )
  ]
  return ''.join([
    svg.words(10, top + 13, short(strip.label, 42), 'panel'),
    svg.words(WIDTH - 12, top + 13, strip.note, 'tick', 'end'),
    svg.tag(
      'rect', x=x(low), y=middle - 6, width=max(x(high) - x(low), 1.0),
      height=12.0, class_='half',
    ),
    svg.dots(places, 'clients'),
    svg.tag('line', x1=mean, x2=mean, y1=middle - 8, y2=middle + 8,
            class_='mean'),
    svg.hits(said, 4.0),
  ])  # fmt: skip


def _ruler(x: svg.Scale, bottom: float) -> str:
  out = ''
  for value in x.ticks(5):
    at = x(value)
    out += svg.tag('line', x1=at, x2=at, y1=14.0, y2=bottom, class_='grid')
    out += svg.words(at, bottom + 13, f'{value:g}', 'tick', 'middle')
  return out


class Axes(NamedTuple):
  """What the two sides of a grid are. names: of the rows. columns: of the
  columns. titles: what a row and a column is."""

  names: Sequence[str]
  columns: Sequence[str]
  titles: tuple[str, str] = ('class', 'client')


def clients(names: Sequence[str], count: int) -> Axes:
  """Classes by clients, who are called by their numbers."""
  return Axes(names, [str(i) for i in range(count)])


def heat(
  values: Sequence[Sequence[float | None]],
  axes: Axes,
  title: str,
  show: svg.Format = '{:.2f}'.format,
) -> str:
  """Values [row][column] as cells, from faint for the least of them to full
  for the most, with a legend that says which these are."""
  known = [v for row in values for v in row if v is not None]
  low, high = min(known), max(known)

  def opacity(value: float) -> str:
    share = (value - low) / (high - low) if high > low else 0.5
    return f'{0.06 + 0.94 * share:.2f}'

  def cell(value, x, y, size, said):
    if value is None:
      return ''
    return svg.tag(
      'rect', svg.tag('title', f'{said}: {show(value)}'),
      x=x + 0.5, y=y + 0.5, width=size[0] - 1, height=size[1] - 1,
      class_='cell', fill_opacity=opacity(value),
    )  # fmt: skip

  def legend(x: float, y: float) -> str:
    step = 100.0 / _SHADES
    shades = [
      svg.tag(
        'rect', x=x + 40 + i * step, y=y, width=step, height=9.0,
        class_='shade', fill_opacity=opacity(low + (high - low) * i
                                             / (_SHADES - 1)),
      )
      for i in range(_SHADES)
    ]  # fmt: skip
    return svg.tag(
      'g',
      svg.words(x + 36, y + 8, show(low), 'tick', 'end'),
      *shades,
      svg.words(x + 144, y + 8, show(high), 'tick'),
      class_='legend',
    )

  return _grid(values, axes, title, cell, legend)


def bubbles(
  counts: Sequence[Sequence[int]], axes: Axes, title: str, what: str = 'rows'
) -> str:
  """Counts [row][column] as circles whose area is the count."""
  most = max((n for row in counts for n in row), default=1) or 1

  def circle(count, x, y, size, said):
    if not count:
      return ''
    radius = 0.5 * min(size) * float(np.sqrt(count / most))
    return svg.tag(
      'circle', svg.tag('title', f'{said}: {count} {what}'),
      cx=x + size[0] / 2, cy=y + size[1] / 2,
      r=f'{max(radius, 0.6):.2f}', class_='bubble',
    )  # fmt: skip

  return _grid(counts, axes, title, circle)


def _grid(
  values,
  axes: Axes,
  title: str,
  mark: Callable[..., str],
  legend: Callable[[float, float], str] | None = None,
) -> str:
  """Marks [row][column], as many as can be told apart."""
  rows = [list(row[:MOST_CLIENTS]) for row in values[:MOST_CLASSES]]
  names = [short(n, 12) for n in axes.names[: len(rows)]]
  left, top = 12.0 + 6.2 * max(5, *map(len, names)), 18.0
  width = (WIDTH - 8 - left) / len(rows[0])
  height = min(max(width, 9.0), 20.0)
  size = min(width, height * 1.6), height
  parts = [svg.words(left - 5, 10, axes.titles[0], 'label', 'end')]
  for i, row in enumerate(rows):
    y = top + i * height
    at = y + height / 2 + 3.5
    parts.append(svg.words(left - 5, at, names[i], 'tick', 'end'))
    for k, value in enumerate(row):
      said = (
        f'{axes.titles[0]} {axes.names[i]}, {axes.titles[1]} {axes.columns[k]}'
      )
      parts.append(mark(value, left + k * size[0], y, size, svg.plain(said)))
  bottom = top + height * len(rows)
  parts.append(_columns(axes, len(rows[0]), left, bottom, size[0]))
  if legend:
    parts.append(legend(left - 12, bottom + 34))
  return svg.picture(WIDTH, bottom + (50 if legend else 34), title, *parts)


def _columns(
  axes: Axes, count: int, left: float, bottom: float, width: float
) -> str:
  """Names of some columns under a grid, as far apart as they are long."""
  names = [short(n, 12) for n in axes.columns[:count]]
  step = max(1, int(np.ceil((6.2 * max(map(len, names)) + 6) / width)))
  parts = [
    svg.words(left + (k + 0.5) * width, bottom + 13, names[k], 'tick', 'middle')
    for k in range(0, count, step)
  ]
  parts.append(svg.words(left, bottom + 28, axes.titles[1], 'label'))
  return ''.join(parts)
