"""Clients spread over devices: the same numbers, and few collectives."""

import functools

import jax
import numpy as np
import pytest

from fedms_jax.cluster.placement import Placement
from fedms_jax.cluster.processes import SingleProcess
from fedms_jax.core import meshes, reduction, rounds
from fedms_jax.core.contract import Work
from fedms_jax.core.scoring import Look
from fedms_jax.persistence import run_store
from fedms_jax.schedules import triggers
from fedms_jax.server import averaged
from fedms_jax.simulation import derivation, driver, execution, needs, observer
from fedms_jax.simulation.state import Options
from tests import world

DENSE = triggers.dense(world.BLOCKS)  # one program a stage
PROGRAMS = rounds.begin_chunk, rounds.step_chunk, rounds.finish_chunk
COLLECTIVES = (
  'all-reduce(',
  'all-gather(',
  'all-to-all(',
  'collective-permute(',
  'reduce-scatter(',
)


def run(place, stages=None, **options):
  """The final state of a run, and its records."""
  options = {'cohort': 3, 'batch_size': 4, 'block': 32, **options}
  records = observer.Recorder()
  simulation = driver.Simulation(
    world.federation(),
    world.start(),
    stages or world.stages(2, DENSE),
    Options(clients='chunk', chunk=3, **options),
    run_store=run_store.Memory(),
    observer=records,
    place=place,
  )
  return simulation, simulation.run(), records.records


@functools.cache
def single():
  return run(Placement())


def agree(one, other):
  world.close(one[1].roles.shared, other[1].roles.shared)
  for a, b in zip(one[2], other[2], strict=True):
    for name in ('train_loss', 'score', 'bytes_up', 'client_flops', 'depth'):
      assert a[name] == pytest.approx(b[name], rel=1e-4)


def personal(found):
  simulation, state, _ = found
  store = simulation.run_store.store('personal', state.roles.personal)
  return store.gather(np.arange(6))


@pytest.mark.parametrize(
  ('devices', 'model'),
  [
    pytest.param(8, 1, marks=pytest.mark.slow, id='8'),
    pytest.param(4, 2, id='2x2'),
  ],
)
def test_devices_give_the_numbers_of_one(devices, model):
  found = run(Placement(devices, model))
  agree(found, single())
  world.close(personal(found), personal(single()))


@pytest.mark.slow
def test_order_statistics_see_all_clients_of_all_devices():
  def merge(before, received):
    del before
    return jax.tree.map(lambda x: jax.numpy.median(x, axis=0), received.update)

  median = averaged.Aggregator(averaged.as_trained, 'stack', merge)
  stages = world.stages(2, DENSE, aggregator=median)
  agree(run(Placement(2), stages[:1]), run(Placement(), stages[:1]))


def test_each_device_derives_its_share_of_a_block(monkeypatch):
  shares, derive, alone = [], derivation.derive, single()

  def watched(algorithm, roles, raw, *how):
    rows = raw['inputs']
    shares.append((len(rows), rows.sharding.shard_shape(rows.shape)[0]))
    return derive(algorithm, roles, raw, *how)

  monkeypatch.setattr(derivation, 'derive', watched)
  agree(run(Placement(4), block=30), alone)
  assert set(shares) == {(32, 8)}  # 30 rows, filled up


def counted(text):
  return {c: n for c in COLLECTIVES if (n := text.count(f' {c}'))}


def test_training_needs_no_collective_and_a_round_one_all_reduce():
  place = Placement(4)
  algorithm, roles = world.first_stage()
  rows = world.cohort_rows(4)
  chunk = place.split(world.clients(rows))
  totals = place.empty(reduction.empty(algorithm, roles))
  roles, table = place.whole((roles, world.table()))
  args = needs.arguments(
    algorithm, world.TOP, roles, Work(table, jax.random.key(0)), totals, chunk,
    mesh=place.mesh,
  )  # fmt: skip
  for program, its in zip(PROGRAMS, args, strict=True):
    assert not counted(program.program().lower(*its).compile().as_text())
  added = meshes.add_devices.program().lower(totals, place.mesh)
  assert counted(added.compile().as_text()) == {'all-reduce(': 1}


def test_each_client_is_of_one_process_and_neighbors_stay_together():
  class Process(SingleProcess):
    processes = 3

    def __init__(self, number):
      self.process_id = number

  ids = np.random.default_rng(0).permutation(100)[:40]
  found = [Placement(peers=Process(i)).mine(ids, 100) for i in range(3)]
  assert sorted(np.concatenate(found)) == list(range(40))
  spans = [(ids[f].min(), ids[f].max()) for f in found]
  assert spans[0][1] < spans[1][0] and spans[1][1] < spans[2][0]


@pytest.mark.parametrize(
  ('asked', 'said'),
  [((99, 1), '`Placement.devices`=99'), ((8, 3), '`Placement.model`=3')],
)
def test_devices_that_there_are_not(asked, said):
  with pytest.raises(ValueError, match=said):
    Placement(*asked)


def test_padding_of_a_mesh_weighs_nothing():
  """Three clients on four devices: the fourth trains padding."""
  algorithm, roles = world.first_stage()
  place = Placement(4)
  look = Look(algorithm, world.DENSE)
  args = (look, roles, {}, world.table(), world.cohort_rows(3)[:, 0])
  held = execution.score(*args, place)
  alone = execution.score(*args, Placement())
  for name, values in alone.items():
    np.testing.assert_allclose(held[name][:3], values, rtol=1e-4)
    assert not np.asarray(held[name][3:]).any()
