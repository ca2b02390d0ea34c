"""Draws the pictures of the documentation.

    python docs/images/draw.py

writes life_cycle.svg and data_flow.svg beside this file.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from fedms_jax.report import svg

HERE = pathlib.Path(__file__).parent
# A picture may stand on any page, so it brings its ground with it.
STYLE = """
:root{--bg:#fdfdfc;--ink:#1c1d20;--muted:#5d606a;--line:#c6c9d1;--soft:#f1f3f7;
--accent:#2b5fc7}
@media(prefers-color-scheme:dark){:root{--bg:#15161a;--ink:#e7e8eb;
--muted:#a0a4af;--line:#464a55;--soft:#20232a;--accent:#82abff}}
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
fill:var(--ink)}
.title{font-weight:650;font-size:13.5px}.quiet{fill:var(--muted)}
.ground{fill:var(--bg)}.frame{fill:none;stroke:var(--line);stroke-width:1.4}
.box{fill:var(--soft);stroke:var(--line)}
.box.main{stroke:var(--accent);stroke-width:1.8}
.arrow{fill:none;stroke:var(--accent);stroke-width:1.8}
.tip{fill:var(--accent)}
"""
LINE = 17.0  # between two lines of text


class Box(NamedTuple):
  """A box with a title and lines below it; x, y is its corner."""

  x: float
  y: float
  width: float
  title: str
  lines: tuple[str, ...]
  main: bool = False

  @property
  def height(self) -> float:
    return 34 + LINE * len(self.lines)

  @property
  def middle(self) -> float:
    return self.y + self.height / 2

  @property
  def right(self) -> float:
    return self.x + self.width

  @property
  def bottom(self) -> float:
    return self.y + self.height

  def drawn(self) -> str:
    """The box as SVG."""
    parts = [
      svg.tag(
        'rect', x=self.x, y=self.y, width=self.width, height=self.height,
        rx=7, class_='box main' if self.main else 'box',
      ),
      svg.words(self.x + 12, self.y + 22, self.title, 'title'),
    ]  # fmt: skip
    for i, text in enumerate(self.lines):
      at = self.y + 22 + LINE * (i + 1)
      parts.append(svg.words(self.x + 12, at, text, 'quiet'))
    return ''.join(parts)


def arrow(*points: tuple[float, float], label: str = '') -> str:
  """A line through points with a tip at the last; a label beside its middle."""
  (x0, y0), (x, y) = points[-2:]
  length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
  dx, dy = (x - x0) / length, (y - y0) / length
  back = (x - 9 * dx, y - 9 * dy)
  corners = [
    (x, y),
    (back[0] - 4.5 * dy, back[1] + 4.5 * dx),
    (back[0] + 4.5 * dy, back[1] - 4.5 * dx),
  ]
  tip = ' '.join(f'{a:.1f},{b:.1f}' for a, b in corners)
  parts = [
    svg.line([*points[:-1], back], 'arrow'),
    svg.tag('polygon', points=tip, class_='tip'),
  ]
  if label:
    (a, b), (c, d) = points[:2]
    parts.append(svg.words((a + c) / 2 + 7, (b + d) / 2 + 4, label, 'quiet'))
  return ''.join(parts)


def frame(x, y, width, height, title: str, text: str) -> str:
  """A frame around what stands in it, with a title and a text on its top."""
  rect = svg.tag(
    'rect', x=float(x), y=float(y), width=float(width), height=float(height),
    rx=10, class_='frame',
  )  # fmt: skip
  return (
    rect
    + svg.words(x + 14, y + 20, title, 'title')
    + svg.words(x + width - 14, y + 20, text, 'quiet', 'end')
  )


def picture(width, height, title: str, parts: Sequence[str]) -> str:
  """A file of its own, with its colors."""
  ground = svg.tag('rect', width='100%', height='100%', class_='ground')
  whole = svg.tag(
    'svg', svg.tag('title', title), svg.tag('style', STYLE), ground, *parts,
    xmlns='http://www.w3.org/2000/svg', viewBox=f'0 0 {width} {height}',
    role='img',
  )  # fmt: skip
  return whole + '\n'


def life_cycle() -> str:
  """What becomes of a foundation model, and what is around all of it."""
  phases = [
    ('pre-training', ('server and clients in', 'turn; all weights')),
    ('fine-tuning', ('LoRA, block by block;', 'experts and a gate')),
    ('prompts', ('of classes, of inputs;', 'adapters of CLIP')),
    ('continual', ('stages after stages;', 'newcomers adapt')),
  ]
  around = [
    ('time', 'who takes part in a round, and who is lost'),
    ('privacy', 'clips, noise, and what it cost: epsilon'),
    ('aggregation', 'means, server optimizers, order statistics'),
  ]
  width, parts = 800, []
  for i, (title, text) in enumerate(around):
    inner = 12.0 + 16 * i
    top = 12.0 + 34 * i
    parts.append(
      frame(inner, top, width - 2 * inner, 228 - 50 * i, title, text)
    )
  boxes = [
    Box(58 + 175 * i, 124, 152, title, lines, main=True)
    for i, (title, lines) in enumerate(phases)
  ]
  parts += [box.drawn() for box in boxes]
  for one, other in zip(boxes, boxes[1:], strict=False):
    parts.append(arrow((one.right + 2, one.middle), (other.x - 2, one.middle)))
  return picture(width, 252, 'The life cycle of a foundation model', parts)


# Boxes of the picture of a round: x, y, width, title, lines, main.
ROUND = {
  'schedule': (20, 20, 230, 'schedule', ('which blocks are active: the plan',)),
  'sampler': (
    20, 90, 230, 'sampler', ('which clients, which rows', '[K, S, B]'),
  ),
  'table': (
    20, 177, 230, 'table',
    ('columns of all examples, and', 'what is frozen, computed once'),
  ),
  'store': (
    20, 264, 230, 'store', ('personal states: what a', 'client gets and keeps'),
  ),
  'clients': (
    300, 90, 210, 'clients',
    ('one map over K clients:', 'begin, a step for each', 'batch, finish'),
    True,
  ),
  'message': (300, 213, 210, 'message', ('update, extras, cover',)),
  'encode': (
    300, 300, 210, 'channel.encode',
    ('clips, noise of its own;', 'then the sum over clients'),
  ),
  'decode': (
    560, 300, 220, 'channel.decode',
    ('noise and release;', 'what it has received'),
  ),
  'server': (
    560, 90, 220, 'server',
    ('step: the roles of the', 'next round, its memory'), True,
  ),
  'books': (560, 20, 220, 'metrics, ledger, state', ()),
}  # fmt: skip


def data_flow() -> str:
  """What passes in one round."""
  boxes = {name: Box(*fields) for name, fields in ROUND.items()}
  clients, server, books = boxes['clients'], boxes['server'], boxes['books']
  into = clients.x - 2
  parts = [box.drawn() for box in boxes.values()]
  for name, bend, y in [
    ('schedule', 280, 112),
    ('sampler', 265, 130),
    ('table', 272, 150),
    ('store', 284, 164),
  ]:
    box = boxes[name]
    at = y if name == 'sampler' else box.middle
    parts.append(arrow((box.right, at), (bend, at), (bend, y), (into, y)))
  below, beside = clients.x + 105, server.x + 110
  encode, decode = boxes['encode'], boxes['decode']
  parts += [
    arrow((below, clients.bottom), (below, boxes['message'].y - 2)),
    arrow((below, boxes['message'].bottom), (below, encode.y - 2)),
    arrow((encode.right, encode.middle), (decode.x - 2, encode.middle)),
    arrow((beside, decode.y), (beside, server.bottom + 2), label='received'),
    arrow((server.x, server.middle), (clients.right + 2, server.middle)),
    arrow((beside, server.y), (beside, books.bottom + 2)),
    arrow((books.x, books.middle), (boxes['schedule'].right + 2, books.middle)),
    svg.words(below, books.middle - 6, 'score', 'quiet', 'middle'),
  ]
  return picture(800, 388, 'What passes in one round', parts)


PICTURES = {'life_cycle.svg': life_cycle, 'data_flow.svg': data_flow}


def main() -> None:
  """Writes all pictures."""
  for name, draw in PICTURES.items():
    (HERE / name).write_text(draw(), encoding='utf-8')


if __name__ == '__main__':
  main()
