"""Metrics, what the schedule watches and what ends a stage, from flags."""

import numpy as np
import pytest

from fedms_jax.core.types import Outputs, Table
from fedms_jax.data.names import DataWarning
from fedms_jax.models import tasks
from fedms_jax.shell import build, config, watched
from fedms_jax.simulation.stopping import Stop

CLASSES = tasks.classification()
TABLE = Table({'labels': np.zeros(4, np.int32)}, tuple('abcde'))
NUMBERS = TABLE._replace(outputs=Outputs('values', ('x',), (0.0,), (2.0,)))


def found(task=CLASSES, table=TABLE, **values):
  flat = {name.replace('__', '.'): value for name, value in values.items()}
  return watched.watched(config.from_values(flat), [task], table)


def test_without_flags_the_score_is_watched_alone():
  assert found() == watched.NOTHING == watched.Watched((), 'validation', None)


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ({'schedule.score': 'f1'}, '--schedule.score=f1'),
    ({'eval.metrics': 'f1', 'eval.every': 2}, '--eval.metrics=f1'),
  ],
)
def test_a_metric_is_not_measured_where_something_else_is_learned(flags, said):
  values = config.from_values({'stages': 'S2,fedms'} | flags)
  with pytest.raises(ValueError, match=said):
    watched.watched(values, [tasks.causal_lm(), CLASSES], TABLE)
  assert watched.watched(values, [CLASSES, CLASSES], TABLE) != watched.NOTHING
  after = config.from_values({'eval.metrics': 'f1'})
  assert watched.watched(after, [tasks.causal_lm(), CLASSES], TABLE).metrics


def test_metrics_are_made_for_the_task():
  made = found(eval__metrics='f1, auc,top3', schedule__score='f1')
  assert [metric.name for metric in made.metrics] == ['f1', 'auc', 'top3']
  assert made.score is made.metrics[0]
  made = found(tasks.regression(), NUMBERS, eval__metrics='rmse')
  # In the units of the data: an error of 1 spread is one of 2.
  assert made.metrics[0].finish(
    np.asarray(
      made.metrics[0].sums(
        np.ones((3, 1), np.float32),
        {'values': np.zeros((3, 1), np.float32), 'mask': np.ones(3, bool)},
      )
    )
  ) == pytest.approx(2.0)


@pytest.mark.parametrize(
  ('values', 'stop'),
  [
    ({'stop__patience': 5}, Stop('capability', None, 5)),
    (
      {'stop__target': '0.5', 'stop__metric': 'train_loss'},
      Stop('train_loss', 0.5, lower=True),
    ),
    (
      {'stop__patience': 2, 'stop__delta': 0.1, 'schedule__score': 'ece'},
      Stop('capability', None, 2, 0.1, lower=True),
    ),
    (
      {'stop__target': '.9', 'stop__metric': 'eval_pooled_f1',
       'eval__every': 3, 'eval__metrics': 'f1'},
      Stop('eval_pooled_f1', 0.9),
    ),
    (
      {'stop__target': '.9', 'stop__metric': 'eval_mixed', 'eval__every': 3,
       'eval__mixed': 0.3},
      Stop('eval_mixed', 0.9),
    ),
  ],
)  # fmt: skip
def test_what_ends_a_stage_knows_which_way_is_better(values, stop):
  assert found(**values).stop == stop


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'eval__metrics': 'f1,mse'}, "--eval.metrics='mse': .*scores of classes"),
    ({'schedule__score': 'rmse'}, "schedule.score='rmse': .*Or validation"),
    ({'schedule__score': 'confusion'}, 'confusion is no number'),
    ({'stop__target': 'high'}, "stop.target='high' is no finite number"),
    ({'stop__target': 'nan'}, 'no finite number'),
    ({'stop__delta': 0.1}, 'without --stop.target or --stop.patience'),
    ({'stop__metric': 'score'}, 'without --stop.target'),
    (
      {'stop__metric': 'eval_own', 'stop__patience': 3},
      'capability, .*with --eval.every also eval_own',
    ),
    (
      {'stop__metric': 'eval_own_f1', 'stop__patience': 3, 'eval__every': 2},
      'allowed: .*eval_own, eval_pooled',
    ),
    (
      {'stop__metric': 'eval_mixed', 'stop__patience': 3, 'eval__every': 2},
      "'eval_mixed' is not measured",
    ),
  ],
)
def test_what_is_not_measured_is_refused(values, words):
  with pytest.raises(ValueError, match=words):
    found(**values)


def test_the_curve_has_the_share_of_the_mixed_stream():
  values = config.from_values({'eval.every': 3, 'eval.mixed': 0.3})
  assert build.options(values).curve.mixed == 0.3


def test_patience_on_test_rows_is_warned_of():
  with pytest.warns(DataWarning, match='test rows say when to stop'):
    found(eval__every=2, stop__metric='eval_own', stop__patience=3)


def test_a_report_of_too_many_sums_is_refused():
  table = TABLE._replace(label_names=tuple(map(str, range(40))))
  with pytest.raises(ValueError, match='10240 sums'):
    found(table=table, schedule__score='auc')
