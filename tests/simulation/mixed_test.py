"""A stream of own and foreign rows is scored as if it were read."""

import numpy as np
import pytest

from fedms_jax.core.metrics import Metric
from fedms_jax.models import measures, tasks
from fedms_jax.simulation import evaluation, mixed
from fedms_jax.simulation.scores import Scores
from tests import world

ECE = measures.make('ece', tasks.classification(), 4, None)
F1 = measures.make('f1', tasks.classification(), 4, None)
SCOPE = evaluation.Scope(mixed=0.3, metrics=(ECE, F1))


@pytest.fixture(scope='module')
def found():
  simulation, state, _ = world.reference()
  return evaluation.evaluate(simulation, state, SCOPE)


def read(share):
  """The evaluation of clients who read a stream of 10 rows, of which their
  own test rows and the pooled ones make up these shares, over and over."""
  simulation, state, _ = world.reference()
  data, rows = simulation.federation, []
  pooled = len(data.pooled)
  # As many copies as make the shares come out.
  own = round((1 - share) / share * pooled / 2)
  for client in range(6):
    rows.append(np.concatenate([np.tile(data.test.of(client), own),
                                data.pooled]))  # fmt: skip
  stream = world.partition(*rows)
  made = simulation.federation._replace(test=stream)
  before, simulation.federation = simulation.federation, made
  try:
    return own, evaluation.evaluate(simulation, state, SCOPE)
  finally:
    simulation.federation = before


def test_it_is_what_the_rows_of_the_stream_give(found):
  """A calibration error and F1, too, which are no means over rows."""
  own, plain = read(0.3)
  size = len(world.reference()[0].federation.pooled)
  share = size / (size + 2 * own)
  simulation, state, _ = world.reference()
  scope = SCOPE._replace(mixed=share)
  found = evaluation.evaluate(simulation, state, scope)
  assert found['mixed_share'] == share
  for name, told in found['models'].items():
    same = plain['models'][name]
    assert told['mixed'] == pytest.approx(same['own_mean'], rel=1e-5)
    assert told['mixed_loss'] == pytest.approx(same['own_loss'], rel=1e-4)
    assert told['mixed_worst_decile'] == pytest.approx(
      same['own_worst_decile'], rel=1e-5
    )
    for metric in ('ece', 'f1'):
      values = found['metrics'][metric][name]
      expected = plain['metrics'][metric][name]['own_mean']
      assert values['mixed'] == pytest.approx(expected, rel=1e-3), metric
    np.testing.assert_allclose(
      np.array(found['per_client'][f'mixed/{name}']),
      plain['per_client'][name],
      rtol=1e-5,
    )


def test_only_who_has_read_pooled_rows_has_a_stream(found):
  simulation, state, _ = world.reference()
  some = evaluation.evaluate(simulation, state, SCOPE._replace(readers=2))
  each = np.array(some['per_client']['mixed/mixture'], float)
  whole = np.array(found['per_client']['mixed/mixture'])
  known = np.isfinite(each)
  assert known.sum() == 2
  np.testing.assert_allclose(each[known], whole[known], rtol=1e-6)
  assert some['models']['mixture']['mixed'] == pytest.approx(
    each[known].mean(), rel=1e-6
  )


def test_a_metric_of_too_many_sums_has_none():
  wide = Metric('wide', lambda *_: 0, float, (mixed.MOST_KEPT + 1,))
  table = F1._replace(name='all', table=True)
  assert mixed.kept([wide, table, ECE]) == {'ece'}
  told = {'models': {}, 'metrics': {'wide': {'it': {}}}, 'per_client': {}}
  none = Scores({}, {}, {}, {})
  stream = mixed.Stream(0.5, None, np.array([3]), 2)
  assert mixed.add(told, stream, [wide], none, none) == {}
  assert told['metrics'] == {'wide': {'it': {'mixed': None}}}


def test_a_task_whose_rows_are_compared_is_refused():
  task = tasks.classification()
  mixed.check(task)
  with pytest.raises(ValueError, match='`Scope.mixed`'):
    mixed.check(task._replace(within_batch=True))
