"""Scores on test rows by what they cost: rounds, bytes, FLOPs, seconds."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from fedms_jax.report import page, svg
from fedms_jax.systems.units import in_bytes, in_flops

WIDTH, HEIGHT = 360.0, 206.0
CLOCK = 'virtual seconds'  # of runs that have any
# What a point is drawn over: title, what a round adds, how it is written.
COSTS: dict[str, tuple[tuple[str, ...], svg.Format]] = {
  'rounds': ((), '{:g}'.format),
  'bytes of all clients, up and down': (
    ('bytes_up', 'bytes_down'),
    lambda value: in_bytes(value),
  ),
  'FLOPs of all clients': (('client_flops',), lambda value: in_flops(value)),
  'seconds of the simulator': (('wall_seconds',), '{:g}'.format),
  CLOCK: (('virtual_time',), '{:g}'.format),
}
KINDS = {
  'own': 'own test rows',
  'pooled': 'pooled test rows',
  'unseen': 'unseen clients',
}
_START = 'eval_'


def spent(
  records: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[float]:
  """What the rounds up to each have cost; their number where no cost is
  named."""
  total, out = 0.0, []
  for record in records:
    total += sum(record.get(n) or 0.0 for n in names) if names else 1.0
    out.append(total)
  return out


def points(
  records: Sequence[Mapping[str, Any]], names: Sequence[str], key: str
) -> list[tuple[float, float]]:
  """(cost, value) of the rounds that have the value."""
  pairs = zip(spent(records, names), records, strict=True)
  return [(x, r[key]) for x, r in pairs if r.get(key) is not None]


def section(records: Sequence[Mapping[str, Any]], score: str) -> str:
  """The curves of a run, '' if it has none. score: what the score is called."""
  found = [n for n in ('', *_metrics(records)) if _lines(records, (), n)]
  if not found:
    return ''
  body = []
  for name in found:
    shown = [
      page.figure(_chart(records, cost, names, show, name, name or score))
      for cost, (names, show) in COSTS.items()
      if cost != CLOCK or any(r.get(n) for r in records for n in names)
    ]
    body.append(page.charts(shown, 'pairs'))
  note = page.paragraph(
    'The served model on test rows while the run went on: means over the same '
    'clients each time. Costs are those of all rounds until then.',
    'quiet',
  )
  return page.section('Curves', *body, note)


def _metrics(records) -> list[str]:
  """The metrics of which there are curves."""
  known = [k for r in records for k in r if k.startswith(f'{_START}own_')]
  names = dict.fromkeys(k.removeprefix(f'{_START}own_') for k in known)
  return [name for name in names if name != 'loss']


def _lines(records, names, metric: str) -> dict[str, list]:
  """Points by kind of rows."""
  end = f'_{metric}' if metric else ''
  found = {
    kind: points(records, names, f'{_START}{kind}{end}') for kind in KINDS
  }
  return {kind: some for kind, some in found.items() if some}


def _chart(records, cost: str, names, show, metric: str, title: str) -> str:
  lines = _lines(records, names, metric)
  every = [p for some in lines.values() for p in some]
  x = svg.Scale(*svg.around([p[0] for p in every], floor=0), 44.0, WIDTH - 12)
  y = svg.Scale(*svg.around([p[1] for p in every]), HEIGHT - 42, 46.0)
  parts: list[str] = [
    svg.axes(x, y, show, '{:.3g}'.format, 4),
    svg.words(2, 12, title, 'panel'),
  ]
  for place, (kind, some) in enumerate(lines.items()):
    parts.append(
      svg.tag(
        'g',
        svg.tag('title', html.escape(f'{title}, {KINDS[kind]}')),
        svg.line([(x(a), y(b)) for a, b in some], f'course {kind}'),
        svg.dots([(x(a), y(b)) for a, b in some], f'clients {kind}'),
        svg.hits(
          [
            (x(a), y(b), f'{KINDS[kind]}: {b:.4g} at {show(a)}')
            for a, b in some
          ]
        ),
        class_=f'curve {kind}',
      )
    )
    at = 44.0 + 108.0 * place
    parts.append(
      svg.line([(at, 30.0), (at + 16, 30.0)], f'course {kind}')
      + svg.words(at + 20, 34, KINDS[kind], 'tick')
    )
  parts.append(svg.words(WIDTH - 12, HEIGHT - 6, cost, 'label', 'end'))
  return svg.picture(WIDTH, HEIGHT, f'{title} against {cost}', *parts)
