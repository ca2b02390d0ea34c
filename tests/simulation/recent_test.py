"""Personal states that stay on the device: the same numbers, without a wait."""

import jax
import numpy as np
import pytest

from fedms_jax.cluster.placement import Placement
from fedms_jax.core import tree
from fedms_jax.persistence.client_store import ClientStore
from fedms_jax.schedules import triggers
from fedms_jax.simulation import recent
from fedms_jax.simulation.state import Options
from tests import world

ONE = {'a': np.zeros((2, 3), np.float32), 'b': np.zeros((), np.int32)}


def states(*values):
  return {
    'a': np.stack([np.full((2, 3), v, np.float32) for v in values]),
    'b': np.array(values, np.int32),
  }


class Watched(ClientStore):
  """Notes who is read from it."""

  def __init__(self, initial):
    super().__init__(initial)
    self.read = []

  def gather(self, ids):
    self.read.append(list(ids))
    return super().gather(ids)


def kept(store, slots, clients=9, one=ONE, place=None):
  data = world.federation(clients)
  options = Options(cohort=2, personal=slots * tree.nbytes(ONE) + (slots > 0))
  return recent.kept(store, one, data, options, place or Placement())


def test_only_those_who_were_long_away_are_read_from_the_store():
  store = Watched(ONE)
  found = kept(store, 4)
  on_device = jax.tree.map(jax.numpy.asarray, states(1, 2))
  for version, ids in enumerate(([0, 1], [1, 2], [3, 0], [4, 1])):
    found.gather(np.array(ids))
    found.scatter(np.array(ids), on_device, version)
  # 1 was used when 4 took the place of the oldest, which was 2.
  assert store.read == [[0, 1], [2], [3], [4]]
  world.same(found.gather(np.array([3, 1])), states(1, 2))
  assert len(store.read) == 4
  world.same(found.gather(np.array([2, 7])), states(2, 0))
  assert store.read[4:] == [[2, 7]]
  store.close()


def test_more_clients_than_places_go_by_the_store():
  store = Watched(ONE)
  found = kept(store, 4)
  found.scatter(np.arange(2), states(5, 6), 0)
  found.scatter(np.arange(6), states(*range(6)), 1)
  world.same(found.gather(np.arange(6)), states(*range(6)))
  world.same(found.gather(np.array([0, 1])), states(0, 1))
  found.scatter(np.array([0]), states(8), 2)
  found.rollback(1)
  world.same(found.gather(np.array([0, 1])), states(0, 1))
  store.close()


def test_nothing_is_kept_where_it_would_be_of_no_use():
  store = Watched(ONE)
  assert kept(store, 3) is store
  assert kept(store, 3, clients=3) is not store
  assert kept(store, 4, place=Placement(2)) is store
  assert kept(store, 0) is store  # on a CPU
  assert kept(store, 4, one={}) is store
  store.close()


@pytest.mark.parametrize('places', [5, 6], ids=['some', 'all'])
def test_the_numbers_of_a_run_are_the_same(places):
  """Six clients, of which two take part in a round."""
  stages = world.stages(4, triggers.dense(world.BLOCKS))
  one = tree.nbytes(world.second_stage()[1].personal)
  ids, ends = np.arange(6), []
  for personal in (0.0, places * one + 1.0):
    simulation, state, records = world.simulate(
      stages, cohort=2, personal=personal
    )
    ends.append((state.roles, simulation.store(state).gather(ids)))
  world.same(*ends)
