"""What clients keep from one stage to the next."""

import jax
import numpy as np

from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.schedules import triggers
from fedms_jax.simulation import driver, observer
from fedms_jax.simulation.state import Options, Preempted
from tests import world


def stages(last=2):
  """Three stages, the last two of local experts: each client of the last
  begins with what the one before has made of it, plus one."""
  trigger = triggers.dense(world.BLOCKS)
  plain, first = world.stages(2, trigger)

  def again(key, before):
    del key
    zeros = jax.tree.map(lambda x: 0 * x, before.personal)
    return before._replace(personal=zeros)

  def carry(before, initial):
    return jax.tree.map(lambda x, y: x + y + 1, before, initial)

  algorithm = first.algorithm._replace(begin=again)
  second = first._replace(
    name='second', algorithm=algorithm, rounds=last, carry=carry
  )
  return [plain._replace(rounds=0), first, second]


def test_a_client_begins_with_what_it_had():
  simulation, state, _ = world.simulate(stages()[:2])
  simulation.stages = stages()
  state = state._replace(stage=2, roles=state.roles._replace(
    personal=jax.tree.map(lambda x: 0 * x, state.roles.personal)
  ))  # fmt: skip
  ids = np.arange(6)
  before = simulation.run_store.store('personal', state.roles.personal)
  known = before.holds(ids)
  assert 0 < known.sum() < 6
  found, old = simulation.store(state).gather(ids), before.gather(ids)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(old), strict=True):
    np.testing.assert_array_equal(np.asarray(x)[known], y[known] + 1)
    assert not np.asarray(x)[~known].any()


class Stop(observer.Silent):
  def stop_requested(self):
    return True


def simulate(folder, watch):
  with Workdir.open(folder, 'flags\n', resume=True) as workdir:
    keep = Disk(workdir, 2)
    try:
      simulation = driver.Simulation(
        world.federation(), world.start(), stages(1),
        Options(cohort=3, batch_size=4, block=32),
        run_store=keep, observer=watch,
      )  # fmt: skip
      state = simulation.run(keep.restore(simulation))
      return state, simulation.store(state).gather(np.arange(6))
    finally:
      keep.close()


def test_a_resumed_run_carries_the_same(tmp_path):
  whole = simulate(tmp_path / 'whole', observer.Silent())
  resumed = None
  while resumed is None:
    try:
      resumed = simulate(tmp_path / 'pieces', Stop())
    except Preempted:
      continue
  world.same(resumed[0].roles, whole[0].roles)
  world.same(resumed[1], whole[1])
