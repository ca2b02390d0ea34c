"""Attacked runs: an attack of nobody is none, and a resumed one goes on."""

import numpy as np
import pytest

from fedms_jax.channel import attacks
from fedms_jax.data import poison
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.server import robust_means
from fedms_jax.simulation import observer
from fedms_jax.simulation.state import Preempted
from tests import world

PATCH = poison.Poison('backdoor', share=0.5, target=1)
HOW = attacks.Attack('gaussian', (0, 4), 0.1, start=1)


class StopAfter(observer.Silent):
  """Asks to stop after a number of finished rounds."""

  def __init__(self, rounds):
    self._left = rounds

  def round(self, record):
    self._left -= 1

  def stop_requested(self):
    return self._left <= 0


def attacked(how, found, **kwargs):
  """Stages under an attack on rows, from the second round on, and messages."""

  def one(stage):
    own = how
    if how is not None:
      apart = stage.algorithm.server.reduction == 'stack'
      own = attacks.attack(how._replace(weighed=not apart))
    return stage._replace(
      algorithm=stage.algorithm._replace(channel=own)
      if own is not None
      else stage.algorithm,
      view=lambda data: poison.view(data, found.copy, 1),
    )

  return [one(stage) for stage in world.stages(2, **kwargs)]


@pytest.mark.slow
def test_an_attack_of_nobody_is_bitwise_the_clean_run():
  """But for rows at the end of the table, which nobody reads."""
  found = poison.poisoned(world.federation(), PATCH, np.zeros(0, int), 0)
  stages = attacked(HOW._replace(clients=()), found)
  _, state, records = world.simulate(stages, data=found.data, scope='run')
  _, plain, before = world.reference()
  world.same(state.roles, plain.roles)
  assert [r['train_loss'] for r in records] == [r['train_loss'] for r in before]


@pytest.mark.slow
def test_a_resumed_attacked_run_is_bitwise_the_whole_one(tmp_path):
  """With an aggregator that remembers the round before."""
  found = poison.poisoned(world.federation(), PATCH, np.array([0, 4]), 0)
  aggregator = robust_means.centered_clip(0.05, 2)

  def stages():
    return attacked(HOW, found, aggregator=aggregator)

  _, whole, _ = world.simulate(stages(), data=found.data)
  _, clean, _ = world.simulate(world.stages(2, aggregator=aggregator))
  moved = [
    not np.array_equal(a, b)
    for a, b in zip(
      *(world.tree.flat(s.roles.shared).values() for s in (whole, clean)),
      strict=True,
    )
  ]
  assert any(moved)  # the attack did something
  for stop in (1, 2):
    folder = tmp_path / str(stop)
    first = Workdir.open(folder, 'flags', False)
    keep = Disk(first, 2)
    with pytest.raises(Preempted):
      world.simulate(stages(), keep=keep, watch=StopAfter(stop),
                     data=found.data)  # fmt: skip
    keep.close()
    first.close()
    again = Workdir.open(folder, 'flags', True)
    keep = Disk(again, 2)
    fresh = world.driver.Simulation(
      found.data, world.start(), stages(),
      world.Options(cohort=3, batch_size=4, block=32),
      run_store=keep, observer=observer.Silent(),
    )  # fmt: skip
    state = fresh.run(keep.restore(fresh))
    keep.close()
    again.close()
    world.same(state.roles.shared, whole.roles.shared)
    world.same(state.memory, whole.memory)
