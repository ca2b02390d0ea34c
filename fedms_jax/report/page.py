"""The pieces of a page: document, sections, tables, figures, commands."""

from __future__ import annotations

import html
import os
import pathlib
from collections.abc import Sequence

from fedms_jax.persistence.files import write_atomic
from fedms_jax.report import style


def document(title: str, *parts: str, css: str = '') -> str:
  """A whole page, which needs nothing but itself. css: of this page alone."""
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{html.escape(title)}</title>\n<style>{style.CSS}{css}</style>\n'
    '</head>\n<body>\n<main>\n'
    f'<h1>{html.escape(title)}</h1>\n'
    + '\n'.join(parts)
    + f'\n</main>\n<script>{style.SCRIPT}</script>\n</body>\n</html>\n'
  )


def write(path: str | os.PathLike, text: str) -> None:
  """Writes a page, whole or not at all.

  Raises:
    ValueError: it cannot be written there.
  """
  try:
    write_atomic(pathlib.Path(path), text)
  except OSError as e:
    raise ValueError(f'{path} cannot be written: {e}.') from e


def section(title: str, *parts: str) -> str:
  """A part with a heading; '' if there is nothing to show."""
  body = '\n'.join(part for part in parts if part)
  return f'<section>\n<h2>{html.escape(title)}</h2>\n{body}\n</section>'


def beside(*sections: str) -> str:
  """Sections that stand side by side where the page is wide."""
  return f'<div class="beside">{"".join(sections)}</div>'


def paragraph(text: str, kind: str = '') -> str:
  """A paragraph of plain text."""
  return f'<p{_class(kind)}>{html.escape(text)}</p>'


def figure(picture: str, caption: str = '') -> str:
  """A picture with what there is to say about it."""
  below = f'<figcaption>{html.escape(caption)}</figcaption>' if caption else ''
  return f'<figure>{picture}{below}</figure>'


def charts(figures: Sequence[str], kind: str = 'charts') -> str:
  """Figures side by side, as many as the page is wide."""
  return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ''


def table(
  head: Sequence[str],
  rows: Sequence[Sequence[str]],
  name: str,
  marks: Sequence[str] = (),
) -> str:
  """A table of cells, which are HTML. The first column stays in sight. marks:
  attributes of the rows, if any."""
  top = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
  body = '\n'.join(
    f'<tr{mark}>' + ''.join(cell if cell[:3] == '<td' else f'<td>{cell}</td>'
                            for cell in row) + '</tr>'
    for row, mark in zip(rows, marks or [''] * len(rows), strict=True)
  )  # fmt: skip
  return (
    f'<div class="scroll" tabindex="0"><table id="{html.escape(name)}">'
    f'<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
  )


def folded(title: str, body: str) -> str:
  """Something that can be opened. body: HTML."""
  return f'<details><summary>{html.escape(title)}</summary>{body}</details>'


def code(title: str, text: str) -> str:
  """A command that can be opened, read and copied."""
  body = f'<div class="code"><pre>{html.escape(text)}</pre></div>'
  return folded(title, body)


def _class(name: str) -> str:
  return f' class="{name}"' if name else ''
