"""A stage that ends before its rounds leaves them to the next one, which here
has a gate that learns from fresh rows."""

import itertools

import pytest

from fedms_jax import schedules
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.schedules import orders, triggers
from fedms_jax.simulation import driver, handover, observer
from fedms_jax.simulation.state import Preempted
from tests import world
from tests.algorithms import fresh_gate_test
from tests.simulation.driver_test import StopAfter, timeless

SETTLED = triggers.queue(world.BLOCKS, world.BLOCKS, length=2, eps=9.0, step=1)


def stages(seen=None):
  """Stage 1 of at most 6 rounds is over after 3: its queue of 2 scores is full
  after 2, of which the second is seen a round late. Stage 2 goes on."""
  order = orders.order('top_down', world.BLOCKS, 0)

  def schedule(handover, ends):
    if seen is not None:
      seen.append(handover)
    made = schedules.schedule(SETTLED, order, ends=ends)
    return schedules.delayed(made, 1)

  first, second = fresh_gate_test.stages('crossfit')
  one, two = (
    lambda handover, ends=ends: schedule(handover, ends)
    for ends in (True, False)
  )
  return [
    first._replace(schedule=one, open=True, rounds=6),
    second._replace(schedule=two, open=True, rounds=1),
  ]


@pytest.fixture(scope='module')
def whole():
  seen = []
  return *world.simulate(stages(seen)), seen


def test_the_next_stage_has_the_rounds_that_are_left(whole):
  simulation, state, records, seen = whole
  names = [record['stage'] for record in records]
  assert names == ['global'] * 3 + ['personal'] * 4
  assert state.done == (3,) and handover.rounds(simulation.stages, state) == 4
  assert simulation.ledgers['global'].client_rounds == 9
  assert (seen[0].rounds, seen[0].before) == (6, 0)
  assert (seen[-1].rounds, seen[-1].before) == (4, 3)
  (begun,) = [h for h in seen if h.trigger is not None]
  assert begun.trigger['depth'] == world.BLOCKS


def on_disk(folder, watch):
  with Workdir.open(folder, 'flags\n', resume=True) as workdir:
    keep = Disk(workdir, 2)
    try:
      records = observer.Recorder()
      simulation = driver.Simulation(
        world.federation(), world.start(), stages(),
        driver.Options(cohort=3, batch_size=4, block=32),
        run_store=keep, observer=observer.Observers(records, watch),
      )  # fmt: skip
      state = keep.restore(simulation)
      try:
        return simulation.run(state), records.records, simulation.ledgers
      except Preempted:
        return None, records.records, None
    finally:
      keep.close()


def test_stopped_at_every_round_it_ends_bitwise_the_same(whole, tmp_path):
  simulation, expected, records, _ = whole
  pieces = []
  for _ in itertools.count():
    state, part, ledgers = on_disk(tmp_path, StopAfter(1))
    pieces += part
    if state is not None:
      break
  assert timeless(pieces) == timeless(records)
  world.same(state.roles, expected.roles)
  assert state.done == expected.done and ledgers == simulation.ledgers
