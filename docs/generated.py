"""Pages that are made of the code: the methods' table, and the reference.

They are made when the documentation is built, so that they cannot be behind.
"""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

PACKAGE = pathlib.Path(__file__).parents[1] / 'fedms_jax'
ARXIV = re.compile(r'(?:arXiv )?\b(\d{4}\.\d{5})\b')
DOI = re.compile(r'\bdoi (10\.\S+)')


SECTION = re.compile(r'^ *(Args|Returns|Raises|Yields):$', re.MULTILINE)


def as_markdown(text: str) -> str:
  """A docstring, which is plain text, for a reader of Markdown.

  Brackets are shapes or products here, and no links; what stands between < and
  > is no tag; a paragraph that is set in is a formula or a table, and kept as
  it is.
  """
  out, apart = [], True
  for part in text.split('\n\n'):
    apart = apart and not SECTION.search(part)  # below it, set in means another
    if apart and out and all(x.startswith('  ') for x in part.splitlines()):
      out.append('\n'.join(f'    {line}' for line in part.splitlines()))
      continue
    words = re.split(r'(`[^`]*`)', part)
    words[::2] = [
      re.sub(r'([\[\]*])', r'\\\1', x).replace('<', '&lt;') for x in words[::2]
    ]
    out.append(''.join(words))
  return '\n\n'.join(out)


def rooms() -> list[str]:
  """The rooms of the package, alphabetically."""
  return sorted(p.parent.name for p in PACKAGE.glob('*/__init__.py'))


def modules(room: str) -> Iterator[tuple[str, ast.Module]]:
  """(dotted name, syntax tree) of the modules of a room that define anything
  and say what they are."""
  for path in sorted((PACKAGE / room).rglob('*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    if ast.get_docstring(tree):
      parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
      yield '.'.join(p for p in parts if p != '__init__'), tree


def reference(room: str) -> str:
  """The page of a room: its modules in the order of the files."""
  parts = [f'# {room}/\n']
  parts += [f'::: {name}\n' for name, _ in modules(room)]
  return '\n'.join(parts)


def reference_index() -> str:
  """A list of all modules with the first sentence of each."""
  parts = ['# Reference\n\nMade of the docstrings, a page for each room.\n']
  for room in rooms():
    parts.append(f'## [{room}/]({room}.md)\n')
    for name, tree in modules(room):
      text = ' '.join((ast.get_docstring(tree) or '').split('\n\n')[0].split())
      parts.append(f'- [`{name}`][{name}]: {text}')
    parts.append('')
  return '\n'.join(parts)


def linked(paper: str) -> str:
  """The text of a paper with arXiv numbers and DOIs as links."""
  paper = ARXIV.sub(lambda m: f'[{m[0]}](https://arxiv.org/abs/{m[1]})', paper)
  return DOI.sub(lambda m: f'[doi](https://doi.org/{m[1]})', paper)


def methods() -> str:
  """The table of all methods: what each is, its paper, its options, and what
  of it is ours."""
  from fedms_jax.shell import catalog  # lazy: only this page needs it

  rows = [
    '| name | what it is | paper | options | what is ours |',
    '|---|---|---|---|---|',
  ]
  for name, method in catalog.METHODS.items():
    options = ', '.join(
      f'`{field}`'
      for field in getattr(method.options, '__dataclass_fields__', ())
    )
    paper = '' if method.paper == '-' else linked(method.paper)
    cells = [f'`{name}`', method.summary, paper, options, method.ours]
    rows.append('| ' + ' | '.join(x.replace('|', r'\|') for x in cells) + ' |')
  return '\n'.join(rows)
