"""The evaluation contract: what is said of classes, and of the gate."""

import copy

import numpy as np
import pytest

from fedms_jax.simulation import evaluation, readers
from tests import world


@pytest.fixture(scope='module')
def found():
  simulation, state, _ = world.reference()
  return evaluation.evaluate(simulation, state, evaluation.Scope())


def test_counts_of_classes_are_those_of_the_rows():
  data = world.federation()
  ids = np.array([4, 1])
  got = evaluation.counts(data.table, data.train, ids)
  for row, client in zip(got, ids, strict=True):
    labels = data.table.columns['labels'][data.train.of(client)]
    assert row.tolist() == [int((labels == c).sum()) for c in range(4)]


def test_pooled_is_the_mean_over_rows_however_they_are_grouped(
  found, monkeypatch
):
  simulation, state, _ = world.reference()
  monkeypatch.setattr(evaluation, '_MOST_CLASSES', 1)
  plain = evaluation.evaluate(simulation, state, evaluation.Scope())
  for name, scores in found['models'].items():
    for key, value in plain['models'][name].items():
      assert scores[key] == pytest.approx(value, rel=1e-5), (name, key)
  assert 'harmonic' not in plain['models']['mixture']
  assert 'gate_weight_by_class' not in plain['per_client']


def test_classes_of_a_client_and_of_others_make_up_the_pooled_score(found):
  """Of the global expert, which is the same for all: the pooled score is the
  mean of both parts, by the rows that they have."""
  simulation, _, _ = world.reference()
  data = simulation.federation
  held = evaluation.counts(data.table, data.train, range(6)) > 0
  labels = data.table.columns['labels'][data.pooled]
  share = held[:, labels].mean(1)
  assert (share < 1).any()  # some client lacks a class
  for name in ('global', 'pretrained'):
    scores = found['models'][name]
    low, high = sorted([scores['own_classes'], scores['other_classes']])
    assert low <= scores['pooled'] <= high
    for key in ('base_classes', 'new_classes', 'base_new_harmonic'):
      assert scores[key] is None  # somebody trained on each class
    assert low <= scores['harmonic'] <= (low + high) / 2


def test_the_gate_is_told_for_each_client_and_class(found):
  own = found['per_client']['gate_weight']
  assert len(own) == 6
  assert np.mean(own) == pytest.approx(found['gate_weight'], rel=1e-6)
  by_class = found['per_client']['gate_weight_by_class']
  assert set(by_class) <= set('abcd')
  for weights in by_class.values():
    assert len(weights) == 6
    assert 0 < min(weights) <= max(weights) < 1


def test_few_of_many_are_drawn_by_the_seed():
  draws = [evaluation.some(1000, 20, seed).tolist() for seed in (0, 0, 1)]
  assert draws[0] == draws[1] != draws[2]
  for draw in draws:
    assert draw == sorted(set(draw)) and len(draw) == 20
    assert 100 < draw[-1] < 1000
  assert evaluation.some(3, 20, 0).tolist() == [0, 1, 2]


def test_columns_are_left_out_only_where_no_client_has_a_row():
  assert readers._columns(256, np.array([1, 256])) == 256
  assert readers._columns(256, np.array([1, 65])) == 256
  assert readers._columns(256, np.array([1, 64])) == 64
  assert readers._columns(256, np.array([1, 3])) == 16


def without(data, label):
  """The federation whose clients have no training row of a class."""
  labels = data.table.columns['labels']
  rows = [data.train.of(k) for k in range(6)]
  kept = [r[labels[r] != label] for r in rows]
  return data._replace(train=world.partition(*kept))


def test_base_and_novel_classes_make_up_the_pooled_score():
  """Of the global expert, which is the same for all."""
  simulation, state, _ = world.reference()
  data = simulation.federation
  changed = copy.copy(simulation)
  changed.federation = without(data, 3)
  found = evaluation.evaluate(changed, state, evaluation.Scope())
  share = (data.table.columns['labels'][data.pooled] == 3).mean()
  assert 0 < share < 1
  for name in ('global', 'pretrained'):
    scores = found['models'][name]
    base, new = scores['base_classes'], scores['new_classes']
    assert scores['pooled'] == pytest.approx(base * (1 - share) + new * share)


def test_the_harmonic_mean_is_of_base_and_novel_classes():
  """Of a model that is right in 1 to 4 of 10 rows of classes a to d."""
  data = without(world.federation(), 3)
  sums = np.array([[[right, 10.0] for right in (1, 2, 3, 4)]])
  found = {'models': {'m': {}}, 'per_client': {}}
  evaluation._add_classes(
    found, {'score/m': sums}, np.arange(4), data, range(6)
  )
  scores = found['models']['m']
  assert scores['base_classes'] == pytest.approx(0.2)
  assert scores['new_classes'] == pytest.approx(0.4)
  assert scores['base_new_harmonic'] == pytest.approx(2 / (1 / 0.2 + 1 / 0.4))


def test_what_a_round_says_of_validation_rows_is_what_evaluating_them_gives():
  data = world.federation()
  clients = data.train.num_clients
  simulation, state, records = world.simulate(
    world.stages(2)[:1], cohort=clients, data=data
  )
  seen = data._replace(test=data.validation)
  simulation.federation = seen
  found = evaluation.evaluate(simulation, state, evaluation.Scope())
  mine = found['models'][simulation.stages[0].algorithm.served]
  assert records[-1]['score'] == pytest.approx(mine['own_mean'])
  assert records[-1]['validation_loss'] == pytest.approx(mine['own_loss'])
