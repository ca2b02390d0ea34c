"""Scales, ticks, and places of marks."""

import itertools
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from fedms_jax.report import figures, grids, svg


@pytest.mark.parametrize('log', [False, True])
@pytest.mark.parametrize(
  ('low', 'high'), [(1, 2), (0.013, 0.9), (3e3, 8.1e9), (7, 1234), (99, 100)]
)
def test_ticks_are_few_round_and_in_range(low, high, log):
  scale = svg.Scale(low, high, 0.0, 300.0, log)
  ticks = scale.ticks(5)
  assert 2 <= len(ticks) <= 7
  assert ticks == sorted(ticks)
  assert low * 0.999 <= ticks[0] and ticks[-1] <= high * 1.001
  for tick in ticks:
    assert -0.5 <= scale(tick) <= 300.5
    assert float(f'{tick:.3g}') == pytest.approx(tick)


def test_a_scale_is_even_and_a_log_scale_in_factors():
  line = svg.Scale(10, 20, 100.0, 0.0)
  assert [line(v) for v in (10, 15, 20)] == [100, 50, 0]
  log = svg.Scale(1, 100, 0.0, 10.0, True)
  assert log(10) == pytest.approx(5)


@pytest.mark.parametrize('values', [[0.0], [5.0, 5.0], [1.0, 2.0]])
def test_a_range_is_never_empty(values):
  low, high = svg.around(values, floor=0)
  assert 0 <= low + 1 and low < high
  assert low <= min(values) and max(values) <= high


def test_text_is_escaped():
  drawn = svg.picture(1, 1, 'a < b', svg.words(0, 0, '<script>&'))
  assert ''.join(xml.fromstring(drawn).itertext()) == 'a < b<script>&'


def marks(drawn, name):
  return [e for e in xml.fromstring(drawn).iter() if e.get('class') == name]


def test_numbers_stand_beside_their_points_and_apart():
  rng = np.random.default_rng(0)
  points = [
    figures.Point(i + 1, f'row {i}', x, y)
    for i, (x, y) in enumerate(rng.uniform([1, 40], [3, 60], (14, 2)))
  ]
  drawn = figures.costs(points, 'bytes', '{:g}'.format)
  numbers = marks(drawn, 'number')
  assert sorted(int(e.text) for e in numbers) == list(range(1, 15))
  places = [(float(e.get('x')), float(e.get('y'))) for e in numbers]
  for a, b in itertools.combinations(places, 2):
    assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) > 6
  circles = [e for e in xml.fromstring(drawn).iter() if e.tag == 'circle']
  for circle, place in zip(circles, places, strict=True):
    gap = np.hypot(float(circle.get('cx')) - place[0],
                   float(circle.get('cy')) + 3.5 - place[1])  # fmt: skip
    assert gap < 36


def test_equal_costs_and_scores_can_be_drawn():
  same = [figures.Point(i, 'x', 0.0, 50.0, 0.0) for i in range(3)]
  drawn = figures.costs(same, 'bytes', '{:g}'.format)
  assert len(marks(drawn, 'number')) == 3


def test_values_beyond_a_bound_are_on_the_scale():
  """Such as a score that may be negative."""
  assert svg.around([0.2, 0.9], floor=0, roof=1)[0] >= 0
  low, high = svg.around([-0.4, 0.5], floor=0, roof=1)
  assert low <= -0.4 and 0.5 < high <= 1
  picture = grids.strips([grids.Strip('a', [-50.0, 100.0])], 'x', 100.0)
  places = [float(x) for x in re.findall(r'M(-?[\d.]+) ', picture)]
  assert len(places) == 2 and min(places) >= 10


def opacities(drawn, kind):
  return [float(e.get('fill-opacity')) for e in marks(drawn, kind)]


def test_a_map_has_its_own_scale_and_says_it():
  """Values that are close to each other can be told apart."""
  axes = grids.clients(['a', 'b'], 2)
  drawn = grids.heat([[0.46, 0.47], [None, 0.48]], axes, 'gate')
  assert opacities(drawn, 'cell') == [0.06, 0.53, 1.0]
  (legend,) = marks(drawn, 'legend')
  shades = opacities(drawn, 'shade')
  assert shades == sorted(shades) and (shades[0], shades[-1]) == (0.06, 1.0)
  assert [e.text for e in legend.iter('text')] == ['0.46', '0.48']
  said = [e[0].text for e in marks(drawn, 'cell')]
  assert said[2] == 'class b, client 1: 0.48'
  assert opacities(grids.heat([[0.5]], axes, 'one'), 'cell') == [0.53]


def test_a_pointer_is_told_which_client_a_dot_is():
  strip = grids.Strip('a', [20.0, 60.0], names=['client 3', 'client <8>'])
  drawn = xml.fromstring(grids.strips([strip], 'x', 100.0))
  (hits,) = [e for e in drawn.iter() if e.get('class') == 'hits']
  assert [c[0].text for c in hits] == ['client 3: 20', 'client <8>: 60']
  (dots,) = [e for e in drawn.iter() if e.get('class') == 'clients']
  places = re.findall(r'M([\d.]+) ([\d.]+)h0', dots.get('d'))
  assert [(c.get('cx'), c.get('cy')) for c in hits] == [
    tuple(x.removesuffix('.0') for x in place) for place in places
  ]


def test_a_figure_of_very_many_values_tells_of_some_of_them():
  places = [(float(i), 0.0, str(i)) for i in range(5 * svg.MOST_HITS)]
  told = svg.hits(places).count('<title>')
  assert svg.MOST_HITS / 2 < told <= svg.MOST_HITS
  assert svg.hits([]) == ''
