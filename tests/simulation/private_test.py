"""Private runs: what they equal, what they count, and how they go on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax import channel, schedules
from fedms_jax.channel import privacy
from fedms_jax.core import seeds, tree
from fedms_jax.core.contract import identity
from fedms_jax.core.streams import Stream
from fedms_jax.data import sampling
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.schedules import orders, triggers
from fedms_jax.simulation import observer
from fedms_jax.simulation.state import Guard, Preempted
from fedms_jax.systems import arrivals
from fedms_jax.systems import privacy as accounts
from tests import world

CLIENTS = 6
OPEN = privacy.Central(float('inf'), 0.0)


class StopAfter(observer.Silent):
  """Asks to stop after a number of finished rounds."""

  def __init__(self, rounds):
    self._left = rounds

  def round(self, record):
    self._left -= 1

  def stop_requested(self):
    return self._left <= 0


def guarded(stages, how, expected, score=None, alike=True):
  """The stages with a private channel and a guard that counts rounds."""

  def one(number, stage):
    event = {'kind': 'gaussian', 'noise': how.noise}

    def spend(spent, ids, steps):
      return accounts.spend(spent or [], accounts.entry(number, event, 1))

    algorithm = stage.algorithm._replace(channel=privacy.central(how))
    guard = Guard(CLIENTS, expected, alike, spend, score)
    return stage._replace(algorithm=algorithm, guard=guard)

  return [one(i, stage) for i, stage in enumerate(stages)]


def test_an_open_clip_without_noise_is_bitwise_the_plain_run():
  """Poisson sampling of everybody, with equal weights."""
  everybody = {'cohort': CLIENTS, 'weights': 'equal'}
  _, plain, records = world.simulate(world.stages(2)[:1], **everybody)
  stages = guarded(world.stages(2)[:1], OPEN, float(CLIENTS))
  _, found, again = world.simulate(stages, sampling='poisson', **everybody)
  world.same(found.roles, plain.roles)
  world.same(found.memory, plain.memory)
  for a, b in zip(records, again, strict=True):
    assert a['train_loss'] == b['train_loss'] and a['score'] == b['score']


NOISY = privacy.Central(0.5, 0.3)


def private(tmp_path=None, stop=0, resume=False, **more):
  stages = guarded(world.stages(2), NOISY, 3.0)
  options = {'sampling': 'poisson', 'weights': 'equal'} | more
  if tmp_path is None:
    return world.simulate(stages, **options)
  workdir = Workdir.open(tmp_path, 'flags', resume)
  keep = Disk(workdir, 2)
  watch = StopAfter(stop) if stop else None
  try:
    simulation = world.simulate  # it restores by itself where there is a state
    if not resume:
      return simulation(stages, keep=keep, watch=watch, **options)
    fresh = world.driver.Simulation(
      world.federation(), world.start(), stages,
      world.Options(**({'cohort': 3, 'batch_size': 4, 'block': 32} | options)),
      run_store=keep, observer=observer.Silent(),
    )  # fmt: skip
    state = keep.restore(fresh)
    return fresh, fresh.run(state), []
  finally:
    keep.close()
    workdir.close()


def test_a_resumed_run_has_the_same_model_noise_and_ledger(tmp_path):
  _, whole, _ = private()
  with pytest.raises(Preempted):
    private(tmp_path, stop=2)
  _, found, _ = private(tmp_path, resume=True)
  world.same(found.roles.shared, whole.roles.shared)
  world.same(found.channel, whole.channel)
  assert found.spent == whole.spent
  assert [line['rounds'] for line in found.spent] == [2, 2]


@pytest.mark.slow
def test_the_key_of_the_channel_is_of_its_own_stream_anew_each_round():
  """Neither that of the clients, nor that of another round or stage."""
  keyed = identity()._replace(
    init=lambda key, message: jnp.zeros(2, jnp.uint32),
    decode=lambda state, received, key: (jax.random.key_data(key), received),
    measure=lambda state: {'drawn': state[1]},
  )
  stages = [
    stage._replace(algorithm=stage.algorithm._replace(channel=keyed))
    for stage in world.stages(2)
  ]
  _, _, records = world.simulate(stages)
  expected = [
    [jax.random.key_data(seeds.stream(0, use, stage, number))[1]
     for stage in range(2) for number in range(2)]
    for use in (Stream.NOISE, Stream.CLIENT)
  ]  # fmt: skip
  assert [r['drawn'] for r in records] == [float(x) for x in expected[0]]
  assert len({float(x) for keys in expected for x in keys}) == 8


def products(state):
  """The largest entry of each B by block, [L]: at the start all are 0."""
  found = tree.flat(state.roles.shared['blocks'])
  return [
    np.abs(x).max(axis=(1, 2)) for k, x in found.items() if k.endswith('/b')
  ]


def test_an_empty_cohort_is_released_too():
  def nobody(number):
    return np.zeros(0, np.int64)

  stages = guarded(world.stages(1)[:1], NOISY, 3.0)
  stages = [stages[0]._replace(arrivals=arrivals.synchronous(nobody))]
  _, state, records = world.simulate(stages, weights='equal')
  # Of the block that was active alone: the frozen prefix knows of no other.
  for x in products(state):
    assert x[2] > 0 and not x[:2].any()
  assert state.ever == (False, False, True)
  assert state.spent[0]['rounds'] == 1 and records[0]['clients'] == 0


def test_blocks_that_others_may_train_are_public_whoever_came():
  """Of six clients half hold one block and half all three; of each round's
  cohort the sum is divided by the expected number of holders."""
  order = orders.order('top_down', world.BLOCKS, 0)
  planned = schedules.schedule(
    triggers.dense(world.BLOCKS), order, budgets=(1, 3)
  )
  budgets = [schedules.budget((1, 3), i, 0) for i in range(CLIENTS)]
  few = np.flatnonzero(np.array(budgets) == 1)[:1]
  stages = guarded(world.stages(1)[:1], NOISY, 1.0, alike=False)
  stages = [
    stages[0]._replace(
      arrivals=arrivals.synchronous(lambda number: few),
      schedule=lambda handover: planned,
    )
  ]
  _, state, _ = world.simulate(stages, weights='equal')
  assert state.ever == (True, True, True)
  assert all((x > 0).all() for x in products(state))


def test_a_private_score_is_what_the_schedule_sees():
  seen = []

  def score(sums, number):
    seen.append(number)
    return 0.25 + number

  stages = guarded(world.stages(2)[:1], NOISY, 3.0, score)
  _, _, records = world.simulate(stages, weights='equal')
  assert [r['capability'] for r in records] == [0.25, 1.25] and seen == [0, 1]


def test_the_mean_of_poisson_cohorts_is_that_of_everybody():
  """The public denominator is without bias, though cohorts differ in size."""
  how = sampling.sampling('poisson', CLIENTS, 3)
  values = np.arange(1.0, CLIENTS + 1)
  means = [values[sampling.sample(how, 0, 0, t)].sum() / 3.0
           for t in range(4000)]  # fmt: skip
  assert np.mean(means) == pytest.approx(values.mean(), rel=0.03)


def test_a_private_channel_is_one_of_a_chain():
  both = channel.chain(channel.chain(), privacy.central(OPEN))
  stages = guarded(world.stages(1)[:1], OPEN, 3.0)
  alone = world.simulate(stages, weights='equal')[1]
  algorithm = stages[0].algorithm._replace(channel=both)
  found = world.simulate(
    [stages[0]._replace(algorithm=algorithm)], weights='equal'
  )[1]
  world.same(found.roles.shared, alone.roles.shared)


def test_who_only_fills_a_chunk_adds_no_noise():
  """Nor does it with noise of its own."""
  algorithm, roles = world.first_stage()
  algorithm = algorithm._replace(channel=privacy.local(1.0, 1.0))
  rows = world.cohort_rows()

  def shared(rows, weights):
    return world.train(algorithm, roles, rows, weights=weights)[0]

  two = shared(rows[:2], np.ones(2, np.float32))
  filled = shared(rows, np.array([1, 1, 0], np.float32))
  world.close(two, filled)
