"""The code of the documentation runs as it stands there."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
PAGES = sorted(DOCS.rglob('*.md'))
RUN = re.compile(r'<!-- run -->\n```python\n(.*?)^```$', re.DOTALL | re.M)


def samples(page: pathlib.Path) -> str:
  """All code of a page that is to be run, on the lines where it stands."""
  text, code = page.read_text(encoding='utf-8'), ''
  for found in RUN.finditer(text):
    line = text.count('\n', 0, found.start(1))
    code += '\n' * (line - code.count('\n')) + found[1]
  return code


@pytest.mark.parametrize(
  'page', [p for p in PAGES if samples(p)], ids=lambda page: page.stem
)
def test_the_code_of_a_page_runs(page):
  exec(compile(samples(page), page, 'exec'), {'__name__': page.stem})


def test_every_how_to_has_code():
  pages = {p for p in (DOCS / 'howto').glob('*.md') if p.stem != 'index'}
  assert len(pages) > 5
  assert not {page.stem for page in pages if not samples(page)}
