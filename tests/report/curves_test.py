"""The curves of a page: what a score has cost so far."""

from fedms_jax.report import curves

RECORDS = [
  {'bytes_up': 10.0, 'bytes_down': 5.0, 'wall_seconds': 2.0, 'eval_own': 0.25,
   'eval_own_loss': 2.0, 'eval_own_f1': 0.2},
  {'bytes_up': 20.0, 'bytes_down': None, 'wall_seconds': 1.0},
  {'bytes_up': 1.0, 'bytes_down': 1.0, 'wall_seconds': 4.0, 'eval_own': 0.75,
   'eval_pooled': 0.5, 'eval_own_f1': 0.6},
]  # fmt: skip


def test_a_score_stands_where_all_rounds_until_it_have_led():
  both = ('bytes_up', 'bytes_down')
  assert curves.points(RECORDS, both, 'eval_own') == [(15, 0.25), (37, 0.75)]
  assert curves.points(RECORDS, (), 'eval_own') == [(1, 0.25), (3, 0.75)]
  assert curves.points(RECORDS, ('wall_seconds',), 'eval_pooled') == [(7, 0.5)]


def test_each_score_is_drawn_over_each_cost():
  plain = curves.section(RECORDS, 'accuracy')
  assert curves.CLOCK not in plain  # of a run without one
  timed = [r | {'virtual_time': 3.0} for r in RECORDS]
  page = curves.section(timed, 'accuracy')
  assert page.count('<svg') == 2 * len(curves.COSTS)
  for cost in curves.COSTS:
    for name in ('accuracy', 'f1'):
      assert f'{name} against {cost}' in page
  # Own rows of both, pooled ones of the score alone; losses are no score.
  assert page.count('class="curve own"') == 2 * len(curves.COSTS)
  assert page.count('class="curve pooled"') == len(curves.COSTS)
  assert 'loss against' not in page


def test_a_run_without_curves_has_no_such_section():
  assert curves.section([{'bytes_up': 1.0}], 'accuracy') == ''
  assert curves.section([], 'accuracy') == ''
