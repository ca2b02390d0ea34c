"""Clients of several versions: each has the inputs of its own step."""

import types

import jax
import numpy as np

from fedms_jax.core import seeds
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Plan, Roles
from fedms_jax.simulation import execution, live, versions
from fedms_jax.simulation.planner import Execution
from fedms_jax.simulation.state import Flying, Options
from fedms_jax.systems.arrivals import Reports

IDS = np.array([2, 5, 7, 9])


def made(ids, version):
  """Rows that tell client and version; later ones have more steps."""
  steps = 1 + version
  rows = 100 * version + ids[:, None, None] + np.zeros((1, steps, 2), int)
  return rows.astype(np.int32), np.full(len(ids), steps)


def reports(share=None):
  versions_of = np.array([1, 3, 1, 2])
  return Reports(IDS, versions_of, np.zeros(4, bool), share=share)


def test_rows_are_those_of_the_step_in_which_a_client_began():
  there = np.array([True, True, False, True])
  rows, steps = versions.batches(made, reports(), there)
  assert steps.tolist() == [2, 4, 3]
  assert rows[:, 0, 0].tolist() == [102, 305, 209]
  assert (rows[0, 2:] == -1).all() and (rows[0, :2] == 102).all()
  more = versions.fresh(lambda ids, v: ids[:, None] + 10 * v, reports(), there)
  assert more.ravel().tolist() == [12, 35, 29]


def test_of_a_part_of_the_work_the_last_steps_are_missing():
  share = np.array([0.5, 0.25, 1.0, 1.0])
  rows, steps = versions.batches(made, reports(share), np.ones(4, bool))
  assert steps.tolist() == [1, 1, 2, 3]
  assert ((rows >= 0).all(axis=2).sum(axis=1) == steps).all()


def test_nobody_at_all_has_no_rows():
  rows, steps = versions.batches(made, reports(), np.zeros(4, bool))
  assert len(rows) == len(steps) == 0


def test_a_chunk_has_clients_of_one_plan_and_of_one_version():
  plan = Plan((True,), 0)
  began = np.array([1, 3, 1, 2])
  for how in (Execution('vmap', 1), Execution('chunk', 2)):
    found = execution.layout([plan] * 4, np.ones(4, int), how, 1, began)
    assert all(len(set(began[places])) == 1 for places, _ in found)
    assert sorted(i for places, _ in found for i in places) == [0, 1, 2, 3]
    if how.mode == 'chunk':  # one program for the plan
      assert {lanes for _, lanes in found} == {2}


def test_keys_round_and_clock_are_those_of_the_step_too():
  now = Roles({'base': 0, 'server': 'now'}, 'now', 'mine')
  then = Flying(40, (True,), {2: (True,)}, 'then', 'seen')
  gone = Flying(60, (True,), {5: (True,)})
  state = types.SimpleNamespace(flying={1: then, 2: gone}, roles=now, stage=1)
  timing = versions.Timing(np.array([1, 4, 2]), None, 0.0, {}, IDS)
  cohort = types.SimpleNamespace(
    timing=timing, lost=np.array([False, False, True]), round=4
  )
  simulation = types.SimpleNamespace(options=Options(seed=5))
  found = live.began(simulation, state, cohort)
  assert set(found) == {1}  # of who reports, and began before
  one = found[1]
  assert one.roles == Roles({'base': 0, 'server': 'seen'}, 'then', 'mine')
  assert (one.round, one.clock) == (1, 40)
  expected = seeds.stream(5, Stream.CLIENT, 1, 1)
  assert (jax.random.key_data(one.key) == jax.random.key_data(expected)).all()


def test_what_is_in_flight_is_kept_as_long_as_its_report_can_be_taken():
  """Of clients 2, 5, 7, 9 one has ended; a report may be two steps old."""
  old = {v: Flying(v, (True,), {i: (True,)}, f'of {v}') for v, i in
         ((2, 5), (3, 7), (4, 2))}  # fmt: skip
  roles = Roles({'server': 'seen'}, 'new', None)
  state = types.SimpleNamespace(
    flying=old, roles=roles, clock=60, ever=(False,)
  )
  timing = versions.Timing(
    IDS[:0], None, 0.0, {}, np.array([2, 8]), {8: (True,), 9: (True,)}
  )
  cohort = types.SimpleNamespace(timing=timing, round=5)
  stage = types.SimpleNamespace(arrivals=types.SimpleNamespace(late=2))
  found = live.flying(stage, state, cohort)
  assert {v: list(f.plans) for v, f in found.items()} == {
    2: [5], 3: [7], 5: [9],
  }  # fmt: skip
  # In step 6, one of step 3 is three steps old.
  assert [f.shared for f in found.values()] == [None, None, 'new']
  assert found[5] == Flying(60, (True,), {9: (True,)}, 'new', 'seen')
