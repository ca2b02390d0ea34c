"""Class shares correct what any model says, and nothing else."""

import copy

import jax
import numpy as np
import pytest

from fedms_jax.core import columns
from fedms_jax.simulation import evaluation, shares
from tests import world

SCOPE = evaluation.Scope()


def scored(weight):
  simulation, state, _ = world.reference()
  return shares.evaluate(simulation, state, SCOPE, shares.Shares(weight))


def test_a_share_is_that_of_the_training_rows_with_half_a_row_beside():
  data = world.federation()
  found = shares.log_shares(data, [3])
  labels = data.table.columns['labels'][data.train.of(3)]
  expected = [(sum(labels == c) + 0.5) / (6 + 2) for c in range(4)]
  np.testing.assert_allclose(np.exp(found[0]), expected, rtol=1e-6)


def test_logits_are_corrected_by_the_client_s_shares():
  simulation, state, _ = world.reference()
  algorithm = simulation.stages[state.stage].algorithm
  plan = simulation.plan(state)
  corrected = shares._corrected(algorithm, (('_x', 0.5),))
  given = columns.take(world.table(), np.arange(4))
  term = shares.log_shares(simulation.federation, [2])[0]
  own = state.roles.personal
  mine = state.roles._replace(personal={'own': own, 'log_shares': term})

  @jax.jit
  def both(roles, mine, batch):
    batch = columns.complete(algorithm, roles, batch, plan)
    one, other = (
      method.predict(has, batch, plan).logits
      for method, has in ((algorithm, roles), (corrected, mine))
    )
    return one, other

  plain, found = both(state.roles, mine, given)
  assert set(found) == {*plain, *(f'{name}_x' for name in plain)}
  for name, logits in plain.items():
    world.close(found[name], logits)
    world.close(found[f'{name}_x'] - logits, 0.5 * term[None].repeat(4, 0))


def test_a_weight_of_nothing_corrects_nothing():
  models = scored(0.0)['models']
  for name in ('pretrained', 'global', 'local', 'mixture'):
    assert models[f'{name}{shares.SUFFIX}'] == pytest.approx(models[name])


def test_models_themselves_are_scored_as_without_shares():
  simulation, state, _ = world.reference()
  plain = evaluation.evaluate(simulation, state, SCOPE)['models']
  models = scored(1.0)['models']
  for name, scores in plain.items():
    assert models[name] == pytest.approx(scores), name
  changed = models['pretrained_shares']['own_loss']
  assert changed != pytest.approx(models['pretrained']['own_loss'], rel=1e-3)
  # Who has no training rows has no shares.
  assert models['global_shares']['unseen'] == models['global']['unseen']


def test_a_weight_is_learned_on_validation_rows(monkeypatch):
  """That of the least loss there, for each model; not on test rows."""
  monkeypatch.setattr(shares, 'WEIGHTS', (0.0, 4.0))
  simulation, state, _ = world.reference()
  found = scored(None)['share_weights']
  data = simulation.federation
  losses = {}
  for weight in shares.WEIGHTS:
    made = copy.copy(simulation)
    made.federation = data._replace(test=data.validation)
    scores = shares.evaluate(made, state, SCOPE, shares.Shares(weight))
    for name in found:
      loss = scores['models'][f'{name}{shares.SUFFIX}']['own_loss']
      losses.setdefault(name, []).append(loss)
  for name, each in losses.items():
    assert found[name] == shares.WEIGHTS[int(np.argmin(each))], name
  assert set(found) == {'pretrained', 'global', 'local', 'mixture'}


def test_test_rows_do_not_choose_the_weight(monkeypatch):
  """Rows that the shares were counted on ask for a large one, and rows of
  another client for none."""
  monkeypatch.setattr(shares, 'WEIGHTS', (0.0, 4.0))
  simulation, state, _ = world.reference()
  data = simulation.federation
  turned = np.roll(np.arange(data.test.num_clients), 1)
  others = world.partition(*(data.test.of(k) for k in turned))
  found = []
  for test in (data.test, data.train, others):
    made = copy.copy(simulation)
    made.federation = data._replace(test=test)
    found.append(
      shares.evaluate(made, state, SCOPE, shares.Shares())['share_weights']
    )
  assert found[0] == found[1] == found[2]
