"""The report as a browser draws it: on a laptop and a phone, light and dark."""

import functools
import json
import re
import shutil
import subprocess

import pytest

from fedms_jax.shell.commands import report
from tests.report import families_test, finished

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
RUN = 'runs/0,seed=1'
pytestmark = pytest.mark.skipif(
  BROWSER is None, reason=f'no browser: none of {", ".join(BROWSERS)}'
)

# Runs in the page and tells the frame around it what is drawn where.
PROBE = """
<script>
for (const d of document.querySelectorAll('details')) d.open = true;
const box = e => { const b = e.getBoundingClientRect();
  return [b.left, b.top, b.right, b.bottom]; };
const css = (e, name) => getComputedStyle(e)[name];
// Rows that are left when a box is clicked.
const left = name => { const b = document.getElementById(name);
  if (!b) return null;
  b.click();
  const seen = [...document.querySelectorAll('#comparison tbody tr')]
    .filter(r => r.getBoundingClientRect().height > 0).length;
  const points = [...document.querySelectorAll('circle.point')]
    .filter(c => c.getBoundingClientRect().height > 0).length;
  b.click();
  return [seen, points]; };
// Whether a pointer at the middle of an element is told its text.
const told = e => { e.scrollIntoView({block: 'center'});
  const b = e.getBoundingClientRect();
  const at = document.elementFromPoint(
    (b.left + b.right) / 2, (b.top + b.bottom) / 2);
  const title = at && at.closest('circle, rect').querySelector('title');
  return title ? title.textContent : ''; };
const charts = [...document.querySelectorAll('svg.chart')]
  .filter(svg => !svg.closest('details'));
parent.postMessage(JSON.stringify({
  width: innerWidth,
  scroll: document.documentElement.scrollWidth,
  charts: charts.map(svg => ({
    title: svg.querySelector('title').textContent,
    box: box(svg),
    scale: svg.getBoundingClientRect().width / svg.viewBox.baseVal.width,
    texts: [...svg.querySelectorAll('text')].map(t =>
      ({text: t.textContent, kind: t.getAttribute('class'), box: box(t),
        size: parseFloat(css(t, 'fontSize')), fill: css(t, 'fill')})),
    lines: [...svg.querySelectorAll('polyline, path, circle')]
      .filter(l => !l.closest('.hits'))
      .map(l =>
        ({kind: l.getAttribute('class'), box: box(l), stroke: css(l, 'stroke'),
          fill: css(l, 'fill')})),
    cells: [...svg.querySelectorAll('.cell')].map(c =>
      ({box: box(c), opacity: parseFloat(css(c, 'fillOpacity'))})),
    legend: [...svg.querySelectorAll('.legend .shade')]
      .filter(s => s.getBoundingClientRect().width > 0).length,
    hits: svg.querySelectorAll('.hits circle').length,
    told: [...svg.querySelectorAll('.hits circle, .cell')].slice(-1).map(told),
  })),
  tables: [...document.querySelectorAll('table')].map(t =>
    ({name: t.id, rows: [...t.querySelectorAll('tbody tr')].map(box)})),
  background: css(document.body, 'backgroundColor'),
  inks: [...document.querySelectorAll('h1, p, td, th, figcaption')].map(e =>
    [e.textContent.slice(0, 30), css(e, 'color')]),
  rows: [...document.querySelectorAll('#comparison tbody tr')].map(box),
  left: ['show-0', 'front-only'].map(left),
}), '*');
</script>
"""
FRAME = """<!doctype html><body style="margin:0">
<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>
<script>onmessage = e => {{
  const out = document.createElement('pre');
  out.id = 'seen';
  out.textContent = e.data;
  document.body.append(out);
}}</script>"""


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('drawn')
  runs = finished.comparison(root / 'runs')
  many = families_test.made(root / 'families')
  pages = {'comparison': runs, 'run': runs / RUN, 'many': many}
  for name, there in pages.items():
    text = report.text(there).replace('</body>', PROBE + '</body>')
    (root / name).mkdir()
    (root / name / 'page.html').write_text(text)
  return root


PAGES = [('comparison', 1200, 'light'), ('comparison', 390, 'dark')]
RUNS = [('run', 1200, 'dark'), ('run', 390, 'light')]
MORE = [
  pytest.param(x, marks=pytest.mark.slow)
  for x in (('run', 1200, 'light'), ('run', 390, 'dark'))
]
MANY = [
  pytest.param(x, marks=pytest.mark.slow)
  for x in (('many', 1200, 'light'), ('many', 390, 'dark'))
]


@pytest.fixture(scope='module', params=[*PAGES, *RUNS, *MORE, *MANY], ids=str)
def seen(request, root):
  """What the browser has drawn of a page."""
  name, width, theme = request.param
  return drawn(root / name, width, theme)


def of(pages):
  """A test of these pages alone."""
  return pytest.mark.parametrize('seen', pages, indirect=True, ids=str)


@functools.cache
def drawn(folder, width, theme):
  """What the browser draws of a page."""
  (folder / 'frame.html').write_text(FRAME.format(width=width))
  words = [
    BROWSER, '--headless', '--no-sandbox', '--disable-gpu',
    f'--user-data-dir={folder}/profile', f'--window-size={max(width, 500)},900',
    '--virtual-time-budget=4000', '--allow-file-access-from-files',
    f'--blink-settings=preferredColorScheme={0 if theme == "dark" else 1}',
    '--dump-dom', f'file://{folder}/frame.html',
  ]  # fmt: skip
  done = subprocess.run(words, capture_output=True, text=True, timeout=120)
  found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
  assert found, done.stderr[-2000:]
  text = found[1].replace('&lt;', '<').replace('&gt;', '>')
  told = json.loads(text.replace('&amp;', '&'))
  assert told['width'] == width
  return told | {'theme': theme}


def luminance(color):
  parts = [float(x) / 255 for x in re.findall(r'[\d.]+', color)[:3]]
  line = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4
          for p in parts]  # fmt: skip
  return 0.2126 * line[0] + 0.7152 * line[1] + 0.0722 * line[2]


def contrast(a, b):
  low, high = sorted((luminance(a), luminance(b)))
  return (high + 0.05) / (low + 0.05)


def test_the_page_is_not_wider_than_the_screen(seen):
  assert seen['scroll'] <= seen['width']
  for chart in seen['charts']:
    assert 0 <= chart['box'][0] < chart['box'][2] <= seen['width']


@of(PAGES)
def test_all_rows_and_figures_are_drawn(seen):
  assert len(seen['rows']) == 4
  assert all(bottom - top > 20 for _, top, _, bottom in seen['rows'])
  titles = [chart['title'] for chart in seen['charts']]
  assert sum(t.startswith('score in % against') for t in titles) == 3
  assert sum(t.startswith('depth over rounds') for t in titles) == 4
  for chart in seen['charts']:
    points = [
      m for m in chart['lines'] if (m['kind'] or '').startswith('point')
    ]
    if chart['title'].startswith('score in %'):
      assert len(points) == 4
    for mark in chart['lines']:
      if mark['kind'] in ('point', 'point best', 'course', 'bubble'):
        left, top, right, bottom = mark['box']
        assert right - left > 0.5 or bottom - top > 0.5
        assert left >= chart['box'][0] - 1 and right <= chart['box'][2] + 1
        assert top >= chart['box'][1] - 1 and bottom <= chart['box'][3] + 1


@of(MANY)
def test_rows_are_hidden_by_family_and_with_them_their_points(seen):
  count, front = families_test.COUNT, len(families_test.BEST)
  assert len(seen['rows']) == count
  assert seen['left'] == [[count // 2, 3 * count // 2], [front, 3 * count]]


@of([*RUNS, *MORE])
def test_the_page_of_a_run_is_drawn_whole(seen):
  titles = [chart['title'] for chart in seen['charts']]
  assert sum(' against ' in t for t in titles) == 4
  assert sum(t.startswith('Confusion over') for t in titles) == 2
  assert sum(t.startswith('gate weight') for t in titles) == 1
  rows = {table['name']: table['rows'] for table in seen['tables']}
  assert len(rows['clients']) == finished.CLIENTS
  assert len(rows['settings']) == 2 and len(rows['confusion-own']) == 4
  for some in rows.values():
    assert all(bottom - top > 15 for _, top, _, bottom in some)


@of([*RUNS, *MORE])
def test_maps_show_differences_and_their_scale(seen):
  maps = [chart for chart in seen['charts'] if chart['cells']]
  assert len(maps) == 3
  for chart in maps:
    shades = [cell['opacity'] for cell in chart['cells']]
    assert max(shades) - min(shades) > 0.9 and chart['legend'] > 10
    for cell in chart['cells']:
      left, top, right, bottom = cell['box']
      assert right - left > 2 and bottom - top > 5
      assert left >= chart['box'][0] and right <= chart['box'][2]


@of([*RUNS, *MORE])
def test_a_pointer_is_told_values(seen):
  """What lies on top at a mark is what says its value."""
  for chart in seen['charts']:
    if chart['hits'] or chart['cells']:
      (told,) = chart['told']
      assert re.search(r': [\d.-]+', told), (chart['title'], told)
  strips = [c for c in seen['charts'] if c['title'].startswith('accuracy of')]
  assert strips[0]['hits'] == 2 * finished.CLIENTS
  assert strips[0]['told'][0].startswith('client 33: ')


@of([RUNS[0]])
def test_a_wide_page_is_used(seen):
  """No figure has an empty half beside it."""
  for chart in seen['charts']:
    left, top, right, bottom = chart['box']
    if ' over rounds' in chart['title']:
      continue  # of small ones there are as many as there is to tell
    others = [
      c['box'] for c in seen['charts']
      if c is not chart and c['box'][0] >= right or c['box'][2] <= left
    ]  # fmt: skip
    assert right - left > 450 and others, chart['title']


def test_words_can_be_read_and_stay_inside(seen):
  for chart in seen['charts']:
    for word in chart['texts']:
      assert word['size'] * chart['scale'] >= 9, (chart['title'], word)
      assert word['box'][0] >= chart['box'][0] - 2, (chart['title'], word)
      assert word['box'][2] <= chart['box'][2] + 2, (chart['title'], word)


def test_words_do_not_cover_each_other(seen):
  for chart in seen['charts']:
    texts = chart['texts']
    for i, a in enumerate(texts):
      for b in texts[i + 1 :]:
        wide = min(a['box'][2], b['box'][2]) - max(a['box'][0], b['box'][0])
        high = min(a['box'][3], b['box'][3]) - max(a['box'][1], b['box'][1])
        assert wide < 2 or high < 4, (chart['title'], a['text'], b['text'])


def test_colors_stand_out_in_both_themes(seen):
  background = seen['background']
  assert (luminance(background) < 0.1) == (seen['theme'] == 'dark')
  for text, color in seen['inks']:
    assert contrast(color, background) >= 4.5, text
  for chart in seen['charts']:
    for word in chart['texts']:
      assert contrast(word['fill'], background) >= 4.5, word['text']
    for mark in chart['lines']:
      if mark['kind'] in ('course', 'point', 'clients', 'front'):
        assert contrast(mark['stroke'], background) >= 3, mark
