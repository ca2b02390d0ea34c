"""Serving after adaptation: every client trains from what the server has."""

import copy

import jax
import numpy as np
import pytest

from fedms_jax.core.alone import alone, personal
from fedms_jax.core.types import Roles
from fedms_jax.data import cohorts
from fedms_jax.data.federation import newcomers
from fedms_jax.simulation import adaptation, evaluation, handover
from tests import world

HOW = adaptation.Adaptation(1, 0.2, 0.2)
SCOPE = evaluation.Scope()


def adapted(run):
  """(what is found, what it cost); the run is left as it is."""
  simulation, state, _ = run
  simulation = copy.copy(simulation)
  simulation.ledgers = dict(simulation.ledgers)
  found = adaptation.evaluate(simulation, state, SCOPE, HOW)
  return found, simulation.ledgers[adaptation.NAME]


@pytest.fixture(scope='module')
def both():
  return adapted(world.reference())


@pytest.fixture
def found(both):
  return both[0]


def of_clients(run):
  """What clients have become: {'shared', 'personal'} [K, ...]."""
  simulation, state, _ = run
  store = simulation.store(state)
  ids, data = np.arange(6), simulation.federation
  group = adaptation._Group(data, ids, 0, store, 0)
  made, whole, _ = adaptation._adapted(simulation, state, group, HOW)
  return made.store(whole).gather(ids)


def test_a_client_alone_is_a_client_of_the_round_that_sends_nothing():
  algorithm, roles = world.second_stage()
  rows = world.cohort_rows(clients=1)
  shared, own, sums = world.train(algorithm, roles, rows)
  mine = personal(roles.shared, roles.personal)
  nothing, kept, same = world.train(
    alone(algorithm), Roles(roles.frozen, {}, mine), rows
  )
  assert nothing == {}
  world.close(kept['personal'], own)
  # The mean of one client is what it sends.
  world.close(jax.tree.map(lambda x: x[0], kept['shared']), shared)
  world.close(same, sums)


def test_every_client_trains_as_its_round_would():
  """A global method's model is fine-tuned on the client's own rows."""
  run = world.simulate(world.stages(1)[:1], cohort=3)
  simulation, state, _ = run
  algorithm = simulation.stages[0].algorithm
  got = of_clients(run)['shared']
  rows, _ = cohorts.batches(
    simulation.federation.train, [4], batch_size=4, epochs=1, steps=0, seed=0,
    stage=adaptation._STAGE, round=0,
  )  # fmt: skip
  _, (plan, *_) = handover.plans(simulation, state, state.round, np.array([4]))
  expected, _, _ = world.train(algorithm, state.roles, rows, plan)
  world.close(jax.tree.map(lambda x: x[4], got), expected, atol=1e-4)
  kernel = np.asarray(state.roles.shared['head']['kernel'])
  moved = np.abs(np.asarray(got['head']['kernel']) - kernel)
  assert (moved.max(axis=(1, 2)) > 1e-4).all()  # met or not


def test_nothing_of_the_run_changes():
  simulation, state, _ = world.simulate(world.stages(1))
  before = jax.device_get(state.roles)
  plain = evaluation.evaluate(simulation, state, SCOPE)
  first = adapted((simulation, state, None))
  world.same(before, state.roles)
  assert evaluation.evaluate(simulation, state, SCOPE) == plain
  assert adapted((simulation, state, None)) == first


def test_newcomers_adapt_on_a_part_of_their_rows(found):
  data = world.federation()
  split = newcomers(data, 0.2, 0.2)
  parts = [split.train.rows, split.validation.rows, split.test.rows]
  assert [len(x) for x in parts] == [6, 2, 2]
  assert sorted(np.concatenate(parts)) == sorted(data.unseen.rows)
  labels = data.table.columns['labels'][split.test.rows]
  left = found['models']['mixture']['unseen_as_left']
  assert left * len(labels) == pytest.approx(round(left * len(labels)))
  pretrained = found['models']['pretrained']
  assert pretrained['unseen'] == pretrained['unseen_as_left']


def test_a_model_that_nobody_trains_stays_as_it_was(found):
  simulation, state, _ = world.reference()
  plain = evaluation.evaluate(simulation, state, SCOPE)['models']
  for key in ('own_loss', 'pooled_loss'):
    same, other = found['models']['global'], found['models']['local']
    assert same[key] == pytest.approx(plain['global'][key])
    assert other[key] != pytest.approx(plain['local'][key], rel=1e-4)


def test_its_costs_are_a_line_of_their_own(both):
  entry = both[1]
  assert entry.bytes_up == 0 and entry.bytes_down > 0
  assert entry.examples == 6 * 6 + 6  # of six clients and a newcomer
  assert entry.client_rounds == 7 and entry.client_flops > 0


def test_models_that_do_not_fit_are_refused(monkeypatch):
  monkeypatch.setattr(adaptation.memory, 'host', lambda: 1e3)
  with pytest.raises(ValueError, match=r'`Adaptation.epochs` keeps .* 7 cli'):
    adapted(world.reference())
