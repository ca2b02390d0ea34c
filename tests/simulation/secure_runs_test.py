"""Whole runs through a secure sum: what they equal, and how they go on."""

import jax
import numpy as np
import pytest

from fedms_jax.channel import secure
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.simulation import observer
from fedms_jax.simulation.state import Preempted
from tests import world
from tests.simulation.private_test import StopAfter

HOW = secure.Secure(20, 1.0, 8.0, 4, world.BLOCKS, threshold=3)
OPTIONS = {'cohort': 4, 'dropout': 0.2}


def stages(how):
  made = secure.secure(how)
  return [
    stage._replace(algorithm=stage.algorithm._replace(channel=made))
    for stage in world.stages(2)
  ]


@pytest.mark.slow
def test_a_masked_run_is_the_ideal_one_stopped_or_not(tmp_path):
  """Bitwise, with clients that are lost, a round that is not opened, and at
  each depth; and near what floats give."""
  _, ideal, records = world.simulate(
    stages(HOW._replace(masked=False)), **OPTIONS
  )
  assert {r['aborted'] for r in records} == {0.0, 1.0}
  assert {r['depth'] for r in records} > {1.0}
  for resume in (False, True):
    workdir = Workdir.open(tmp_path, 'flags', resume)
    keep = Disk(workdir, 1)
    try:
      if not resume:
        with pytest.raises(Preempted):
          world.simulate(stages(HOW), keep=keep, watch=StopAfter(1), **OPTIONS)
        continue
      fresh = world.driver.Simulation(
        world.federation(), world.start(), stages(HOW),
        world.Options(batch_size=4, block=32, **OPTIONS),
        run_store=keep, observer=observer.Silent(),
      )  # fmt: skip
      found = fresh.run(keep.restore(fresh))
      world.same(found.roles.shared, ideal.roles.shared)
      world.same(found.channel, ideal.channel)
    finally:
      keep.close()
      workdir.close()
  keys = secure.secure(HOW).wire.keys
  for r in records:
    assert r['secagg_bytes'] == r['clients'] * sum(keys) + r['lost'] * (
      keys.early + keys.down
    )


def test_a_round_that_is_not_opened_moves_nothing():
  def nobody(how):
    return world.simulate(stages(how)[:1], **OPTIONS | {'dropout': 0.999})

  simulation, state, records = nobody(HOW)
  assert [r['aborted'] for r in records] == [1.0, 1.0]
  world.same(state.roles.shared, simulation._begin(
    0, simulation.initial, None).roles.shared)  # fmt: skip
  # What it has cost is counted.
  assert all(r['bytes_up'] > 0 for r in records)


def test_clients_that_train_other_blocks_are_refused():
  from fedms_jax import schedules
  from fedms_jax.schedules import orders, triggers

  order = orders.order('top_down', world.BLOCKS, 0)
  mixed = schedules.schedule(
    triggers.dense(world.BLOCKS), order, budgets=(1, 3)
  )
  one = stages(HOW)[0]._replace(schedule=lambda handover: mixed)
  with pytest.raises(ValueError, match='train the same blocks'):
    world.simulate([one], cohort=4)


def test_the_order_of_a_cohort_is_bitwise_nothing():
  algorithm, roles = world.first_stage()
  made = secure.secure(HOW._replace(masked=False))
  algorithm = algorithm._replace(channel=made)
  rows = world.cohort_rows()
  ids = np.arange(3, dtype=np.uint32)
  order = np.array([2, 0, 1])
  found = [
    world.train(algorithm, roles, rows[o], ids=ids[o], how='loop')[0]
    for o in (np.arange(3), order)
  ]
  world.same(*found)
  assert jax.tree.leaves(found[0])
