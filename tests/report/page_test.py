"""What a report shows, by its HTML; `browser_test.py` looks at it drawn."""

import html.parser
import json
import re

import pytest

from fedms_jax.persistence import writers
from fedms_jax.report import markdown, ranking, runs, versus, views
from fedms_jax.shell import config, flags, main
from fedms_jax.shell.commands import report
from tests.report import finished

DEFAULTS = writers.parse_flags(flags.to_text(config.Config()))
VOID = {'meta', 'br', 'hr', 'img', 'input', 'link'}


class Page(html.parser.HTMLParser):
  """The elements of a page, with their text; refuses one that is not closed."""

  def __init__(self, text):
    super().__init__()
    self.elements, self._open = [], []
    self.feed(text)
    assert not self._open

  def handle_starttag(self, tag, attrs):
    self.elements.append([tag, dict(attrs), ''])
    if tag not in VOID:
      self._open.append(self.elements[-1])

  def handle_startendtag(self, tag, attrs):
    self.elements.append([tag, dict(attrs), ''])

  def handle_endtag(self, tag):
    assert self._open.pop()[0] == tag

  def handle_data(self, data):
    for element in self._open:
      element[2] += data

  def all(self, tag, kind=None):
    return [
      e for e in self.elements
      if e[0] == tag and kind in (None, e[1].get('class'))
    ]  # fmt: skip

  def pictures(self, title):
    return [e for e in self.all('svg') if e[2].startswith(title)]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return finished.comparison(
    tmp_path_factory.mktemp('pages'),
    missing={'odd': 'needs <two> towers'},
    search={'good': {'1e-3': 0.5, '1e-2': 0.7}, 'cheap': {'1e-3': None}},
    rules=['One rule.'],
    notes={'good': 'a line & more'},
  )


@pytest.fixture(scope='module')
def page(root):
  return Page(report.text(root))


@pytest.fixture(scope='module')
def single(root):
  return Page(report.text(root / 'runs' / '0,seed=1'))


def test_rows_are_ranked_and_marked(page):
  rows = [e for e in page.all('tr')][1:5]
  names = [re.match(r'\d(.*?)\d\d\.\d', row[2])[1] for row in rows]
  assert names == ['good', 'as good', 'cheap', 'bad <b>']
  assert ['1st' in row[2] for row in rows] == [True, False, False, False]
  assert ['≈' in row[2] for row in rows] == [False, True, False, False]
  lead = page.all('p', 'lead')[0][2]
  assert 'own test rows: good; not significantly worse: as good.' in lead
  assert '2.00×' in rows[1][2] and '0.10×' in rows[2][2]


def test_spread_is_that_of_the_seeds(root, page):
  row = runs.comparison(root).rows[0]
  means = [100 * run.scores['own_mean'] for run in row.runs]
  mean = sum(means) / 3
  spread = (sum((m - mean) ** 2 for m in means) / 2) ** 0.5
  shown = page.all('td', 'top')[0][2]
  assert shown.startswith(f'{mean:.1f} ± {spread:.1f}')


def test_every_figure_is_there_once_for_each_row(page):
  for title in ranking.COSTS:
    assert len(page.pictures(f'score in % against {title}')) == 1
  assert len(page.all('circle', 'point')) + len(
    page.all('circle', 'point best')
  ) == 4 * len(ranking.COSTS)
  assert len(page.pictures('depth over rounds')) == 4
  # Of what is watched, losses have a scale of their own.
  assert len(page.pictures('watched-validation over rounds')) == 3
  assert len(page.pictures('watched-train_loss over rounds')) == 1
  lines = page.all('polyline', 'course')
  assert len(lines) == 2 * 4 * 3  # two values, four rows, three seeds
  for line in lines:
    assert len(line[1]['points'].split()) == 6
  strips = page.all('path', 'clients')
  assert [s[1]['d'].count('h0') for s in strips] == [36] * 8
  assert len(page.all('rect', 'cell')) == 4 * 48
  bubbles = page.all('circle', 'bubble')
  assert 30 < len(bubbles) < 48  # a client without a class has no circle
  assert len(page.all('use')) == 3 + 2


def test_queries_are_a_cost_where_somebody_asks(tmp_path):
  rows = []
  for label, asked in (('gradient', 0.0), ('losses', 500.0)):
    run = runs.read(finished.run(tmp_path / label))
    run.summary['total']['queries'] = asked
    rows.append(runs.Row(label, [run]))
  (title,) = ranking.QUERIES
  shown = Page(versus.report(runs.Comparison('both', rows), {}))
  assert len(shown.pictures(f'score in % against {title}')) == 1
  assert '2. losses: 500, ' in str(shown.elements)
  shown = Page(versus.report(runs.Comparison('one', rows[:1]), {}))
  assert not shown.pictures(f'score in % against {title}')


def test_the_front_is_named(page):
  captions = [e[2] for e in page.all('figcaption')]
  assert captions[:3] == ['On the front: 3 cheap, 1 good.'] * 3


def test_what_is_missing_searched_and_ruled_is_told(page):
  assert page.all('ul', 'missing')[0][2] == 'odd: needs <two> towers'
  text = ' '.join(e[2] for e in page.all('section'))
  assert 'edge of what was tried: good.' in text
  assert 'One rule.' in text and 'good (a line & more)' in text


def test_a_page_needs_nothing_but_itself(page, single):
  for found in (page, single):
    for tag, attributes, _ in found.elements:
      assert tag not in ('img', 'link', 'iframe', 'object', 'base'), tag
      for name in ('src', 'href', 'data', 'srcset', 'action', 'xlink:href'):
        assert attributes.get(name, '#').startswith('#')
    style = found.all('style')[0][2]
    assert 'url(' not in style and '@import' not in style
    script = found.all('script')[0][2]
    assert not re.search(r'fetch|XMLHttp|import\(|src=|https?:', script)
    ids = {e[1]['id'] for e in found.elements if 'id' in e[1]}
    assert {e[1]['href'][1:] for e in found.all('use')} <= ids
    named = [e[1]['id'] for e in found.elements if 'id' in e[1]]
    assert len(named) == len(set(named))


def test_light_and_dark_have_the_same_colors(page):
  style = page.all('style')[0][2]
  light, dark = style.split('@media(prefers-color-scheme:dark)')[:2]
  dark = dark.split('}}')[0]
  named = [set(re.findall(r'--[a-z]+(?=:)', part)) for part in (light, dark)]
  assert named[0] == named[1]
  assert set(re.findall(r'var\((--[a-z]+)\)', style)) == named[0]


def test_every_class_has_a_style_and_is_used(page, single):
  style = page.all('style')[0][2]
  used = {
    word
    for found in (page, single)
    for e in found.elements
    for word in e[1].get('class', '').split()
  }
  styled = set(re.findall(r'\.([a-z][a-z-]*)', style))
  assert used - {'mark', 'missing'} <= styled
  assert styled - {'leader'} <= used  # only where points crowd


def test_the_page_of_a_run_has_its_models_and_costs(single):
  tables = single.all('table')
  assert [t[1]['id'] for t in tables] == [
    'scores', 'metrics', 'costs', 'confusion-own', 'confusion-pooled',
    'settings', 'clients',
  ]  # fmt: skip
  text = tables[0][2]
  assert 'global expert' in text and 'mixture served' in text
  assert len(single.all('polyline', 'course')) == 4
  assert [s[1]['d'].count('h0') for s in single.all('path', 'clients')] == [
    12
  ] * 3
  assert len(single.all('rect', 'cell')) == 48 + 2 * 12
  assert '--seed=1' in single.all('pre')[0][2]


def test_cells_of_maps_say_what_they_are(single):
  cells = [e[2] for e in single.all('rect', 'cell')]
  # A class with no rows has no shares.
  assert len([c for c in cells if c.startswith('right')]) == 2 * 12
  assert 'right class <c>, predicted class <b>: 25%' in cells
  assert 'class class <a>, client 33: 0.' in ' '.join(cells)


def test_every_client_has_a_row_and_a_name(root, single):
  run = runs.read(root / 'runs' / '0,seed=1')
  (table,) = [e for e in single.all('table') if e[1]['id'] == 'clients']
  assert all(word in table[2] for word in ('training rows', 'mixture', 'f1'))
  rows = [e[2] for e in single.all('tr') if re.match('(0|3|33)[^ ]', e[2])]
  shown = f'{100 * run.per_client("mixture")[1]:.1f}'
  count = sum(run.partition['train'][3])
  assert any(r.startswith(f'3{count}') and shown in r for r in rows)
  # Of a client whose rows nobody has counted, scores alone.
  assert any(r.startswith('33––') for r in rows)
  dots = ' '.join(e[2] for e in single.all('g', 'hits'))
  for client in finished.IDS:
    assert f'client {client}: ' in dots


def test_a_page_says_how_rows_were_dealt_where_no_flag_did(root, single):
  run = runs.read(root / 'runs' / '0,seed=1')
  assert not run.flags['partition.name'] and run.dealt == 'classes'
  text = ' '.join(e[2] for e in single.all('p', 'lead'))
  assert 'partition classes,' in text
  captions = ' '.join(e[2] for e in single.all('figcaption'))
  assert 'partition classes.' in captions
  named = run._replace(flags=run.flags | {'partition.name': 'mine'})
  named = named._replace(partition=None)
  assert named.dealt == 'mine'
  unknown = run._replace(partition=None)
  assert 'partition' not in views.world([unknown]).lower()


def test_settings_are_those_that_are_no_defaults(single):
  (table,) = [e for e in single.all('table') if e[1]['id'] == 'settings']
  assert 'schedule.namedensequeue' in table[2].replace('\n', '')
  assert 'seed10' in table[2] and 'lora.rank' not in table[2]


def test_a_run_of_an_earlier_version_has_a_page_too(root, tmp_path):
  run = finished.run(tmp_path)
  for name in ('stages.json', 'partition.json', 'metrics.jsonl'):
    (run / name).unlink()
  summary = json.loads((run / 'summary.json').read_text())
  del summary['client_ids'], summary['metrics']
  del summary['per_client']['gate_weight']
  del summary['per_client']['gate_weight_by_class']
  (run / 'summary.json').write_text(json.dumps(summary))
  old = Page(report.text(run))
  titles = [e[2] for e in old.all('h2')]
  assert 'Clients' in titles
  assert not {'Partition', 'Gate'} & set(titles)


def test_the_command_writes_where_it_is_told(root, tmp_path, capsys):
  out = tmp_path / 'x.html'
  folder = root / 'runs' / '1,seed=0'
  assert main.main(['fedms', 'report', f'--workdir={folder}',
                    f'--out={out}']) == 0  # fmt: skip
  assert str(out) in capsys.readouterr().out
  assert out.read_text().startswith('<!doctype html>')
  assert main.main(['fedms', 'report', f'--workdir={root}']) == 0
  assert 'A comparison' in (root / 'report.html').read_text()
  for words, message in (
    ([], '--workdir is missing'),
    ([f'--workdir={tmp_path}'], 'holds no run'),
    ([f'--workdir={folder}', f'--out={tmp_path}/no/x'], 'cannot be written'),
  ):
    assert main.main(['fedms', 'report', *words]) == 2
    assert message in capsys.readouterr().err


def cells(text):
  """The cells of a table in Markdown, its head first."""
  lines = text.splitlines()
  assert set(lines.pop(1)) == set('| -')
  rows = [re.split(r'(?<!\\\\)\|', line)[1:-1] for line in lines]
  assert len({len(row) for row in rows}) == 1
  return [[cell.strip() for cell in row] for row in rows]


def test_the_table_alone_says_what_the_page_says(root, page, tmp_path):
  out = tmp_path / 'table.md'
  assert main.main(['fedms', 'report', f'--workdir={root}',
                    f'--out={out}']) == 0  # fmt: skip
  head, *rows = cells(out.read_text())
  assert [row[0] for row in rows] == ['good', 'as good', 'cheap', 'bad <b>']
  shown = page.all('tr')[1:5]
  for row, (_, _, text) in zip(rows, shown, strict=True):
    for cell in row[1:]:
      for word in cell.strip('*≈ ').replace('(', '').replace(')', '').split():
        assert word in text, (cell, text)
  assert [row[1].startswith('**') for row in rows] == [True] + [False] * 3
  assert ['≈' in row[1] for row in rows] == [False, True, False, False]
  assert head[-4:] == list(ranking.BEHIND)
  assert rows[1][-4].endswith('(2.00×)')


def test_no_name_ends_a_cell_of_a_table():
  names = ['a|b', 'a\nb', 'a\\|b', 'a\r\n|\u2028b', '\\']
  text = markdown._table(['', 'x'], [[name, '1'] for name in names])
  lines = text.split('\n')[:-1]
  assert len(lines) == 2 + len(names)
  for line in lines:
    # As CommonMark reads it: a backslash takes the sign behind it along.
    bare = re.sub(r'\\.', '', line)
    assert bare.count('|') == 3 and len(bare.splitlines()) == 1


def test_the_table_of_a_run_has_its_models(root, tmp_path):
  out, folder = tmp_path / 'run.md', root / 'runs' / '0,seed=1'
  assert main.main(['fedms', 'report', f'--workdir={folder}',
                    f'--out={out}']) == 0  # fmt: skip
  _, *rows = cells(out.read_text())
  models = runs.read(folder).summary['models']
  assert [row[0] for row in rows] == list(models)
  for row, scores in zip(rows, models.values(), strict=True):
    assert float(row[1]) == pytest.approx(100 * scores['own_mean'], abs=0.05)
