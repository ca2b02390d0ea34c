"""What the documentation is made of: pictures, tables, and a page for each."""

import importlib.util
import pathlib
import re
from xml.etree import ElementTree

import pytest

from fedms_jax.shell import catalog
from tests import layering_test

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / 'docs'


def loaded(path: pathlib.Path):
  """A script of the documentation as a module."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


draw = loaded(DOCS / 'images' / 'draw.py')
generated = loaded(DOCS / 'generated.py')


def test_all_pictures_are_drawn():
  there = {path.name for path in (DOCS / 'images').glob('*.svg')}
  assert there == set(draw.PICTURES)


@pytest.mark.parametrize('name', draw.PICTURES)
def test_a_picture_is_what_the_script_draws(name):
  text = (DOCS / 'images' / name).read_text(encoding='utf-8')
  assert text == draw.PICTURES[name](), 'run python docs/images/draw.py'
  ElementTree.fromstring(text)


@pytest.mark.parametrize('fields', draw.ROUND.values(), ids=lambda f: f[3])
def test_words_stay_in_their_box(fields):
  box = draw.Box(*fields)
  room = box.width - 20
  assert 7.8 * len(box.title) < room  # bold, of 13.5 px
  assert all(6.3 * len(line) < room for line in box.lines)  # of 12 px


def rows() -> dict[str, list[str]]:
  lines = generated.methods().splitlines()[2:]
  cells = [re.split(r'(?<!\\)\|', line)[1:-1] for line in lines]
  return {c[0].strip(' `'): [x.strip() for x in c] for c in cells}


def test_the_table_has_every_method_with_all_of_its_options():
  assert list(rows()) == list(catalog.METHODS)
  for name, method in catalog.METHODS.items():
    cells = rows()[name]
    fields = getattr(method.options, '__dataclass_fields__', {})
    assert re.findall(r'`(\S+)`', cells[3]) == list(fields)
    assert cells[4] == method.ours


def test_every_paper_of_the_table_is_a_link():
  for name, method in catalog.METHODS.items():
    numbers = re.findall(r'\b\d{4}\.\d{5}\b', method.paper)
    links = re.findall(r'arxiv\.org/abs/([\d.]+)\)', rows()[name][2])
    assert links == numbers, name
    if re.search(r'\d{4}\.\d{5}|10\.\d{4}', method.paper):
      assert '](https://' in rows()[name][2], name


def test_the_reference_has_a_page_for_each_room_and_all_of_its_modules():
  assert {*layering_test.ROOMS, 'shell'} <= set(generated.rooms())
  page = generated.reference('server')
  found = re.findall(r'^::: (\S+)$', page, re.MULTILINE)
  files = {p.stem for p in (ROOT / 'fedms_jax' / 'server').glob('[a-z]*.py')}
  assert {name.rpartition('.')[2] for name in found} == files
  assert '(server.md)' in generated.reference_index()


def test_a_docstring_is_read_as_plain_text():
  text = 'A [K, S] of `x[i]` <id>.\n\n  y = A * b\n\nArgs:\n  x: [B].'
  assert generated.as_markdown(text) == (
    'A \\[K, S\\] of `x[i]` &lt;id>.\n\n      y = A * b\n\nArgs:\n  x: \\[B\\].'
  )
  whole = 'Does it.\n\nReturns:\n  one;\n\n  and another.'
  assert generated.as_markdown(whole) == whole


def test_what_can_be_added_has_a_section():
  """Every item of the page on building that says how to add something."""
  build = (ROOT / 'BUILD.md').read_text(encoding='utf-8')
  part = build.split('\n## How to add\n')[1].split('\n## ')[0]
  items = re.findall(r'^- \*(.+?)\*', part, re.MULTILINE)
  text = '\n'.join(p.read_text() for p in (DOCS / 'howto').glob('*.md'))
  sections = {t.lower() for t in re.findall(r'^##? (.+)$', text, re.MULTILINE)}
  assert len(items) > 12
  assert not {item.lower() for item in items} - sections
