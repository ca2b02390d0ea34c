"""A comparison of many rows: families, what is shown of them, and the front."""

import re

import pytest

from fedms_jax.report import families, markdown, runs, statistics
from fedms_jax.shell.commands import report
from tests.report import finished
from tests.report.page_test import Page, cells

COUNT = 30
# A row is as good as it is dear, but for every third, which is worse.
ROWS = {
  f'row {i}': (0.4 + 0.01 * i - 0.15 * (i % 3 == 2), 100.0 * 1.3**i, {})
  for i in range(COUNT)
}
GROUPS = {label: ('lora', 'a <b>')[i % 2] for i, label in enumerate(ROWS)}
SEARCH = {label: {'bytes': 1.0, 'flops': 2e9, 'seconds': 3.0} for label in ROWS}
BEST = {f'row {i}' for i in range(COUNT) if i % 3 != 2}


def made(root):
  """The folder of the comparison."""
  return finished.comparison(
    root, (0,), ROWS, groups=GROUPS, search_costs=SEARCH
  )


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return made(tmp_path_factory.mktemp('families'))


@pytest.fixture(scope='module')
def page(root):
  return Page(report.text(root))


def test_what_nothing_beats_is_undominated():
  points = [(1, 1, 1), (2, 0, 1), (1, 1, 1), (0, 2, 0), (0, 1, 1), (2, 0, 0)]
  assert statistics.undominated(points) == [0, 1, 2, 3]


def test_the_front_is_of_own_and_pooled_rows_against_bytes(root):
  rows = runs.comparison(root).rows
  assert families.front(rows) == BEST
  # Pooled rows alone may hold a place, and a row without them has none.
  worst = rows[2].runs[0]

  def pooled(value):
    models = worst.summary['models']
    models |= {'mixture': models['mixture'] | {'pooled': value}}
    changed = worst._replace(summary=worst.summary | {'models': models})
    return [*rows[:2], rows[2]._replace(runs=[changed]), *rows[3:]]

  assert families.front(pooled(0.9)) == BEST | {'row 2'}
  assert 'row 2' not in families.front(pooled(None))


def test_every_row_can_be_hidden_by_its_family_and_the_front(page):
  boxes = {e[1]['id']: 'checked' in e[1] for e in page.all('input')}
  assert boxes == {'show-0': True, 'show-1': True, 'front-only': False}
  assert page.all('label')[2][2].strip() == f'the front alone ({len(BEST)})'
  rows = [e for e in page.all('tr') if 'data-group' in e[1]]
  assert len(rows) == COUNT
  for _, attributes, text in rows:
    label = re.match(r'\d+(row \d+?)\d\d\.\d', text)[1]
    assert ('data-front' in attributes) == (label in BEST) == ('●' in text)
    family = page.all('label')[int(attributes['data-group'])][2]
    assert family.strip() == f'{GROUPS[label]} ({COUNT // 2})'
  style = page.all('style')[0][2]
  for box in ('show-0', 'show-1', 'front-only'):
    assert f'#{box}:' in style
  # Points of the figures go with their rows.
  groups = [e for e in page.all('g') if 'data-group' in e[1]]
  assert len(groups) == 3 * COUNT


def test_of_many_points_those_of_the_front_have_numbers(page):
  """Where there is room for them; the caption names them all."""
  best = len(page.all('circle', 'point best'))
  numbers = len(page.all('text', 'number'))
  assert best / 2 < numbers <= best < 3 * COUNT


def test_what_is_drawn_for_each_of_many_rows_is_folded(page):
  titles = [e[2] for e in page.all('summary')]
  assert titles[:3] == [
    'Active blocks by round',
    'Capability (validation) by round, which the schedule sees',
    'Each client, by row',
  ]


def test_the_best_of_each_family_is_told(root, page):
  (table,) = [e for e in page.all('table') if e[1]['id'] == 'families']
  found = {row.label: row for row in runs.comparison(root).rows}
  for group in set(GROUPS.values()):
    mine = [found[label] for label in ROWS if GROUPS[label] == group]
    top = max(mine, key=statistics.score)
    held = sum(row.label in BEST for row in mine)
    told = f'{group}{COUNT // 2}{held}{top.label}'
    assert told + f'{100 * statistics.score(top):.1f}' in table[2]


def test_the_table_says_families_front_and_what_the_search_spent(root):
  head, *rows = cells(markdown.comparison(runs.comparison(root)))
  where = {title: i for i, title in enumerate(head)}
  for row in rows:
    label = row[0]
    assert row[where['family']] == GROUPS[label]
    assert (row[where['front']] == '●') == (label in BEST)
    assert row[where['search: client FLOPs']] == '2 GFLOP'


def test_of_many_rows_that_are_no_worse_a_few_are_named(tmp_path):
  alike = {f'row {i}': (0.7, 1.0, {}) for i in range(12)}
  page = Page(report.text(finished.comparison(tmp_path, (0,), alike)))
  lead = page.all('p', 'lead')[0][2]
  assert lead.count('row ') == 9 and lead.endswith('row 8 and 3 more.')


def test_few_rows_without_families_have_no_choices(tmp_path):
  plain = Page(report.text(finished.comparison(tmp_path, (0,))))
  assert not plain.all('input') and not plain.all('fieldset')
  assert 'data-group' not in str(plain.elements)
