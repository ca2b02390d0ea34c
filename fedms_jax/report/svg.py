"""Pictures as SVG text: elements, scales and axes.

Colors are CSS classes, so that a picture follows the page from light to dark.
Charts are drawn for a phone's width; on a wide page several stand in a row.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Format = Callable[[float], str]


def tag(name: str, *children: str, **attributes) -> str:
  """An element. `class_` is class, `stroke_width` is stroke-width; floats are
  written with one decimal, text must be escaped before."""
  words = [name]
  for key, value in attributes.items():
    if value is None:
      continue
    if isinstance(value, float):
      value = f'{value:.1f}'.removesuffix('.0')
    key = key.rstrip('_').replace('_', '-')
    words.append(f'{key}="{html.escape(str(value))}"')
  head = ' '.join(words)
  return f'<{head}>{"".join(children)}</{name}>' if children else f'<{head}/>'


def plain(text: str) -> str:
  """Text as an element holds it."""
  return html.escape(text)


def words(x: float, y: float, text: str, class_: str = '', anchor='start'):
  """A line of text."""
  return tag(
    'text', html.escape(text), x=float(x), y=float(y),
    class_=class_ or None, text_anchor=None if anchor == 'start' else anchor,
  )  # fmt: skip


def picture(width: float, height: float, title: str, *children: str) -> str:
  """The picture itself; `title` is what a screen reader says."""
  return tag(
    'svg', tag('title', html.escape(title)), *children,
    viewBox=f'0 0 {width:g} {height:g}', role='img', class_='chart',
  )  # fmt: skip


def line(points: Sequence[tuple[float, float]], class_: str) -> str:
  """A line through points."""
  path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
  return tag('polyline', points=path, class_=class_)


def dots(points: Sequence[tuple[float, float]], class_: str) -> str:
  """Many small dots as one element: strokes of no length with round ends."""
  path = ''.join(f'M{x:.1f} {y:.1f}h0' for x, y in points)
  return tag('path', d=path, class_=class_)


# Places in a figure, each with what is said of it.
Hits = Sequence[tuple[float, float, str]]
MOST_HITS = 600  # of a figure: a browser must hold them all


def hits(places: Hits, radius: float = 5.0) -> str:
  """What a pointer finds: nothing is drawn, and a text is shown where it rests.
  Of more than `MOST_HITS` places, as many, evenly."""
  step = -(-len(places) // MOST_HITS)
  some = list(places)[::step] if step else []
  return tag(
    'g',
    *(
      tag('circle', tag('title', html.escape(text)), cx=float(x), cy=float(y),
          r=radius)
      for x, y, text in some
    ),
    class_='hits',
  ) if some else ''  # fmt: skip


class Scale(NamedTuple):
  """Values `low` to `high` at places `start` to `stop`."""

  low: float
  high: float
  start: float
  stop: float
  log: bool = False

  def __call__(self, value: float) -> float:
    low, high = self.low, self.high
    if self.log:
      low, high, value = math.log(low), math.log(high), math.log(value)
    share = (value - low) / (high - low)
    return self.start + share * (self.stop - self.start)

  def ticks(self, most: int = 5) -> list[float]:
    """Round values in the range."""
    if self.log:
      found = _log_ticks(self.low, self.high)
      step = max(1, math.ceil(len(found) / most))
      if len(found) > 1:
        return found[::step]
    return _even_ticks(self.low, self.high, most)


def _even_ticks(low: float, high: float, most: int) -> list[float]:
  rough = (high - low) / most
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(
    power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999
  )
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  wide = high / low > 100
  found = [10.0**p * m for p in powers for m in ((1,) if wide else (1, 2, 5))]
  return [v for v in found if low * 0.999 <= v <= high * 1.001]


def around(values: Sequence[float], log: bool = False, floor=None, roof=None):
  """(low, high) with some room around values; never an empty range."""
  low, high = min(values), max(values)
  if log:
    room = max((high / low) ** 0.08, 1.1)
    return low / room, high * room
  room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
  low, high = low - room, high + room
  # A bound that some value is beyond is none.
  if floor is not None:
    low = max(low, min(floor, *values))
  if roof is not None:
    high = min(high, max(roof, *values))
  return (low, high) if high > low else (low - 1.0, high + 1.0)


def axes(x: Scale, y: Scale, show_x: Format, show_y: Format, many=5) -> str:
  """Grid lines and numbers."""
  parts = []
  for value in y.ticks(many):
    at = y(value)
    parts.append(
      tag('line', x1=x.start, x2=x.stop, y1=at, y2=at, class_='grid')
    )
    parts.append(words(x.start - 5, at + 3.5, show_y(value), 'tick', 'end'))
  for value in x.ticks(many):
    at = x(value)
    parts.append(
      tag('line', x1=at, x2=at, y1=y.start, y2=y.start + 4, class_='axis')
    )
    text, edge = show_x(value), x.stop + 10
    if at + 3.1 * len(text) > edge:  # else it would be cut off
      parts.append(words(edge, y.start + 15, text, 'tick', 'end'))
    else:
      parts.append(words(at, y.start + 15, text, 'tick', 'middle'))
  parts.append(
    tag(
      'line', x1=x.start, x2=x.stop, y1=y.start, y2=y.start, class_='axis'
    )  # fmt: skip
  )
  return ''.join(parts)
