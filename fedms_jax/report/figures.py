"""The figures of a report."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from fedms_jax.report import svg
from fedms_jax.report.statistics import front

WIDTH = 360.0  # of a chart on a phone; its text is 11 px there
CROWD = 24  # rows, more of which are not all numbered or drawn one by one
_SMALL = 172.0  # two in a row on a phone


class Point(NamedTuple):
  """A row among costs. number: its place in the table. spread: standard
  deviation of y over seeds, or None. group: number of its family, if any."""

  number: int
  label: str
  x: float
  y: float
  spread: float | None = None
  group: int | None = None


def costs(points: Sequence[Point], title: str, show_x: svg.Format) -> str:
  """Score in % against a cost, with the Pareto front. Of a crowd of points
  those of the front have a number."""
  found = front([(p.x, p.y) for p in points])
  at, log = _spread(points)
  x = svg.Scale(*svg.around(at, log, floor=0), 40.0, WIDTH - 12, log)
  ends = [p.y + s * (p.spread or 0) for p in points for s in (-1, 1)]
  y = svg.Scale(*svg.around(ends, roof=100), 222.0, 14.0)
  places = [(x(a), y(p.y)) for a, p in zip(at, points, strict=True)]
  stairs = []
  for i in found:
    if stairs:
      stairs.append((places[i][0], stairs[-1][1]))
    stairs.append(places[i])
  nothing = log and min(p.x for p in points) <= 0
  label = f'{title}; 0 is at the left edge' if nothing else title
  parts = [
    svg.axes(x, y, show_x, '{:g}'.format),
    svg.line(stairs, 'front'),
    svg.words(WIDTH - 12, 256, label, 'label', 'end'),
  ]
  taken = list(places)
  for i, p in enumerate(points):
    name = f'{p.number}. {p.label}: {show_x(p.x)}, {p.y:.1f} %'
    drawn = _mark(p, places[i], name, y, i in found)
    if len(points) <= CROWD or i in found:
      drawn += _number(str(p.number), i, places, taken, x, y)
    parts.append(svg.tag('g', drawn, data_group=p.group))
  return svg.picture(WIDTH, 262, f'score in % against {title}', *parts)


def _spread(points: Sequence[Point]) -> tuple[list[float], bool]:
  """(costs as they are drawn, whether on a logarithmic scale): there, what
  costs nothing lies below the least that costs anything."""
  some = [p.x for p in points if p.x > 0]
  if not some or max(some) <= 8 * min(some):
    return [p.x for p in points], False
  return [p.x if p.x > 0 else min(some) / 3 for p in points], True


def _mark(p: Point, at, name: str, y: svg.Scale, best: bool) -> str:
  """A point, with its spread."""
  whisker = ''
  if p.spread:
    whisker = svg.tag(
      'line', x1=at[0], x2=at[0], y1=y(p.y - p.spread), y2=y(p.y + p.spread),
      class_='whisker',
    )  # fmt: skip
  kind = 'point best' if best else 'point'
  circle = svg.tag('circle', cx=at[0], cy=at[1], r=4.5, class_=kind)
  title = svg.tag('title', html.escape(name))
  return svg.tag('g', whisker, title, circle, class_='mark')


# Where a number may stand: first where no line of the front leads.
_BESIDE = (
  (-1, -1), (1, 1), (-1, 0), (1, -1), (1, 0), (-1, 1), (0, -1), (0, 1)
)  # fmt: skip


def _number(text: str, i: int, points, taken: list, x, y) -> str:
  """The number of the point i, beside it and no other one, where nothing else
  is; or as far from all else as can be, and in a crowd nowhere."""
  narrow = 1.0 if len(text) == 1 else 0.7  # of what is as wide as two signs
  at, others = points[i], points[:i] + points[i + 1 :]
  places = [
    (at[0] + dx * away, at[1] + dy * away)
    for away in (9, 16, 24, 32)
    for dx, dy in _BESIDE
  ]

  def room(place):
    inside = x.start + 6 < place[0] < x.stop + 6
    inside &= y.stop - 4 < place[1] < y.start - 6
    return inside * min(
      max(narrow * abs(place[0] - a), 1.2 * abs(place[1] - b)) for a, b in taken
    )

  def own(place):
    near = math.dist(place, at)
    return all(math.dist(place, other) > near for other in others)

  good = [p for p in places if room(p) > 8.5]
  best = next(filter(own, good), None)
  if best is None and len(points) > CROWD:
    return ''
  best = best or max(places, key=room)
  taken.append(best)
  leader = svg.line([at, best], 'leader') if math.dist(at, best) > 14 else ''
  return leader + svg.words(best[0], best[1] + 3.5, text, 'number', 'middle')


class Course(NamedTuple):
  """A value over rounds: a line for each seed. label: of the panel."""

  label: str
  lines: Sequence[Sequence[float | None]]


def courses(
  panels: Sequence[Course],
  name: str,
  show: svg.Format,
  cuts=(),
  also=(),
  **bounds,
) -> list[str]:
  """A small chart for each panel, all on one scale, the others behind it.

  name: unlike that of other figures of the page. cuts: rounds at which a
  stage begins. also: a value that the scale has to show. bounds: floor and
  roof of the scale.
  """
  values = [
    v for p in panels for one in p.lines for v in one if v is not None
  ]  # fmt: skip
  if not values:
    return []
  longest = max(len(one) for p in panels for one in p.lines)
  x = svg.Scale(1, max(longest, 2), 34.0, _SMALL - 8)
  y = svg.Scale(*svg.around([*values, *also], **bounds), 102.0, 24.0)

  behind = ''.join(_drawn(x, y, p.lines[:1], 'behind') for p in panels)
  steps = ''.join(
    svg.tag('line', x1=x(c + 0.5), x2=x(c + 0.5), y1=y.start, y2=y.stop,
            class_='cut')
    for c in cuts
  )  # fmt: skip
  shared = svg.tag('g', behind, id=f'behind-{name}')
  out = []
  for i, panel in enumerate(panels):
    back = f'<use href="#behind-{name}"/>'
    if i == 0:
      back = shared
    parts = [
      svg.axes(x, y, '{:g}'.format, show, 3),
      steps,
      back if len(panels) > 1 else '',
      _drawn(x, y, panel.lines, 'course'),
      svg.words(2, 12, short(panel.label, 29), 'panel'),
      svg.words(_SMALL - 8, 131, 'round', 'label', 'end'),
      svg.hits(_said(x, y, panel.lines, show)),
    ]
    title = f'{name} over rounds: {panel.label}'
    out.append(svg.picture(_SMALL, 136, title, *parts))
  return out


def _said(x: svg.Scale, y: svg.Scale, lines, show: svg.Format) -> svg.Hits:
  """What a pointer is told along the lines."""
  return [
    (x(t + 1), y(v), f'round {t + 1}: {show(v)}')
    for one in lines
    for t, v in enumerate(one)
    if v is not None
  ]


def _drawn(x: svg.Scale, y: svg.Scale, lines, class_: str) -> str:
  out = ''
  for one in lines:
    kept = [(x(t + 1), y(v)) for t, v in enumerate(one) if v is not None]
    out += svg.line(kept, class_)
  return out


def short(text: str, most: int) -> str:
  """A text of at most so many signs."""
  return text if len(text) <= most else text[: most - 1] + '…'
