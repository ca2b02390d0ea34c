"""Rounds with a clock: what they equal, what they charge, how they go on."""

import itertools
import json

import jax
import numpy as np
import pytest

from fedms_jax.channel.staleness import Discount, discounted
from fedms_jax.core import tree
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.schedules import triggers
from fedms_jax.server import robust
from fedms_jax.simulation import driver, observer
from fedms_jax.simulation.state import Guard, Options, Preempted
from fedms_jax.systems import devices, selection
from fedms_jax.systems.arrivals import Arrivals, Reports
from fedms_jax.systems.buffered import Buffered, buffered
from fedms_jax.systems.waiting import Waiting, waiting
from tests import world

CLIENTS, COHORT = 6, 3
SLOW = devices.lognormal(
  CLIENTS, 3, speed=1e6, down=1e4, up=1e4, speed_sigma=1.0
)


def timed(stages, make, channel=None):
  """The stages with arrivals of their own. make: (stage number) -> Arrivals."""
  out = []
  for number, stage in enumerate(stages):
    algorithm = stage.algorithm
    if channel is not None:
      algorithm = algorithm._replace(channel=channel)
    out.append(stage._replace(algorithm=algorithm, arrivals=make(number)))
  return out


def uniform(number):
  return selection.uniform(0, number, CLIENTS)


def waits(how, which=SLOW):
  return lambda number: waiting(how, which, uniform(number))


def flows(how, which=SLOW):
  return lambda number: buffered(how, which, uniform(number))


POLY = discounted(Discount('poly'))
INSTANT = {
  'waiting': (waits(Waiting(COHORT), devices.instant(CLIENTS)), None),
  'buffered': (
    flows(Buffered(COHORT, COHORT), devices.instant(CLIENTS)),
    POLY,
  ),
}


def numbers(records):
  """What a round has told, but for clocks."""
  mute = ('virtual_clock', 'offline', 'late', 'cancelled', 'failed', 'partial',
          'stale', 'in_flight', 'staleness_mean', 'staleness_max')  # fmt: skip
  return [
    {k: v for k, v in r.items() if not k.endswith('seconds') and k not in mute}
    for r in records
  ]


@pytest.mark.parametrize('kind', INSTANT)
def test_instant_arrivals_are_bitwise_the_plain_run(kind):
  """Also with a discount, whose reports are all fresh."""
  _, plain, records = world.reference()
  make, channel = INSTANT[kind]
  stages = timed(world.stages(2), make, channel)
  _, found, again = world.simulate(stages, scope='run')
  world.same(found.roles, plain.roles)
  assert numbers(again) == numbers(records)
  assert found.flying == {} and all(r['virtual_clock'] == 0 for r in again)


def test_of_no_time_half_of_the_speed_is_twice_the_seconds():
  """Devices that compute alone: seconds are the ledger's FLOPs over speed."""
  which = devices.instant(CLIENTS)._replace(speed=np.full(CLIENTS, 2e5))
  stages = world.stages(3)[:1]  # a block deeper each round
  _, _, records = world.simulate(timed(stages, waits(Waiting(COHORT), which)))
  half = which._replace(speed=which.speed / 2)
  _, _, again = world.simulate(timed(stages, waits(Waiting(COHORT), half)))
  for one, other in zip(records, again, strict=True):
    # All clients have the same rows, so that each computes a third.
    expected = one['client_flops'] / COHORT / 2e5
    assert one['virtual_time'] == pytest.approx(expected)
    assert other['virtual_time'] == pytest.approx(2 * expected)
  took = [r['virtual_time'] for r in records]
  assert [r['depth'] for r in records] == [1, 2, 3]
  assert took[0] < took[1] < took[2]  # what few blocks are for
  assert records[-1]['virtual_clock'] == pytest.approx(sum(took))


def scripted(*steps):
  """Arrivals by a script: (who begins, [(who reports, its version)]) each."""

  def due(state, step, cost):
    begin, ends = steps[step]
    if begin:
      cost(np.array(begin))
    ids = np.array([i for i, _ in ends], np.int64)
    versions = np.array([v for _, v in ends], np.int64)
    return state, Reports(ids, versions, np.zeros(len(ids), bool))

  return lambda number: Arrivals(None, due, live=True, late=-1)


def first_stage(script, rounds, channel=None, **options):
  dense = triggers.dense(world.BLOCKS)
  stages = timed(world.stages(rounds, dense)[:1], scripted(*script), channel)
  _, state, records = world.simulate(stages, **options)
  return state, records


def fresh(*ids, version=0):
  return [(i, version) for i in ids]


@pytest.mark.parametrize(
  'kind', ['constant', 'poly', pytest.param('weight', marks=pytest.mark.slow)]
)
def test_a_late_client_is_trained_from_the_model_that_it_began_with(kind):
  """By its rows and keys of that round. What it adds is what it would have
  added then, times what it weighs now."""
  channel = None
  if kind != 'constant':
    mode = 'weight' if kind == 'weight' else 'count'
    channel = discounted(Discount('poly'), mode)
  early, late = (0, 2, 4), (1, 3, 5)
  first, _ = first_stage([(early, fresh(*early))], 1)
  then, _ = first_stage([(late, fresh(*late))], 1)
  script = [((0, 1, 2, 3, 4, 5), fresh(*early)), ((), fresh(*late))]
  both, records = first_stage(script, 2, channel)
  weight = {'constant': 1.0, 'poly': 2**-0.5, 'weight': 1.0}[kind]
  begun = jax.tree.map(np.asarray, state_of(0).shared)
  expected = tree.add(
    first.roles.shared,
    tree.scale(tree.subtract(then.roles.shared, begun), weight),
  )
  world.close(both.roles.shared, expected)
  assert [r['clients'] for r in records] == [3, 3] and both.flying == {}


def state_of(stage):
  """The roles with which a stage begins."""
  script = [((), [])]
  state, _ = first_stage(script, 1)
  return state.roles


class StopAfter(observer.Silent):
  """Asks to stop after a number of finished rounds."""

  def __init__(self, rounds):
    self._left = rounds

  def round(self, record):
    self._left -= 1

  def stop_requested(self):
    return self._left <= 0


def pieces(folder, stages, rounds=1):
  """(state, records) of a run that is stopped every so many rounds."""
  records = []
  for _ in itertools.count():
    with Workdir.open(folder, 'flags', resume=True) as workdir:
      keep, seen = Disk(workdir, 2), observer.Recorder()
      watch = observer.Observers(seen, StopAfter(rounds))
      try:
        made = driver.Simulation(
          world.federation(), world.start(), stages,
          Options(cohort=COHORT, batch_size=4, block=32),
          run_store=keep, observer=watch,
        )  # fmt: skip
        state = keep.restore(made)
        try:
          state = made.run(state)
        except Preempted:
          state = None
        records += seen.records
        if state is not None:
          return state, records
      finally:
        keep.close()


def learning(number):
  """Asynchronous, with a memory of what clients reported, and stale reports
  that are thrown away."""
  rule = selection.power_of_choice(np.full(CLIENTS, 6), 4)
  select = selection.by(0, number, CLIENTS, rule)
  return buffered(Buffered(1, 3, late=1), SLOW, select)


@pytest.mark.parametrize('every', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_stopped_at_every_round_ends_bitwise_the_same(tmp_path, every):
  """In flight at each stop: clients of several models."""
  stages = timed(world.stages(4), learning, POLY)
  _, whole, records = world.simulate(stages)
  state, again = pieces(tmp_path, stages, every)
  world.same(state.roles, whole.roles)
  assert state.arrivals == json.loads(json.dumps(whole.arrivals))
  assert numbers(again) == numbers(records)
  clocks = [[r['virtual_clock'] for r in x] for x in (records, again)]
  assert clocks[0] == clocks[1] and clocks[0] == sorted(clocks[0])
  # Else this would have shown nothing.
  assert any(r['staleness_max'] for r in records)
  assert any(r['stale'] for r in records)
  assert whole.flying and set(state.flying) == set(whole.flying)
  assert len(whole.arrivals['memory']) > COHORT


def test_what_is_wasted_is_what_the_ledger_says_of_who_did_not_report():
  stages = timed(world.stages(2)[:1], waits(Waiting(2, over=2.0)))
  made, _, records = world.simulate(stages, cohort=2)
  for r in records:
    assert r['clients'] == 2 and r['cancelled'] == r['lost'] == 2
    assert 0 < r['wasted_flops'] < r['client_flops'] / 2
    assert r['client_rounds'] == 4
    assert r['wasted_bytes'] < r['bytes_up'] + r['bytes_down']
  (entry,) = made.ledgers.values()
  assert entry.wasted_flops == sum(r['wasted_flops'] for r in records)
  assert entry.virtual_time == sum(r['virtual_time'] for r in records)


def test_partial_work_trains_as_many_steps_as_there_is_time_for():
  """Two steps each; with time for one, the run is that of one step."""
  which = devices.instant(CLIENTS)._replace(speed=np.full(CLIENTS, 2e5))
  stages = world.stages(1, triggers.dense(world.BLOCKS))[:1]
  options = {'batch_size': 3, 'cohort': COHORT}
  _, _, (full,) = world.simulate(
    timed(stages, waits(Waiting(COHORT), which)), **options
  )
  deadline = 0.6 * full['virtual_time']
  how = Waiting(COHORT, deadline=deadline, partial=True)
  _, found, (some,) = world.simulate(
    timed(stages, waits(how, which)), **options
  )
  _, one, _ = world.simulate(stages, steps=1, **options)
  world.same(found.roles.shared, one.roles.shared)
  assert some['partial'] == COHORT and some['examples'] == full['examples'] / 2
  assert some['client_flops'] == full['client_flops'] / 2


def test_a_round_that_fails_changes_nothing_but_the_clock():
  how = Waiting(COHORT, deadline=1e-9, least=0.5)
  stages = timed(world.stages(2)[:1], waits(how))
  _, state, records = world.simulate(stages)
  world.same(state.roles.shared, state_of(0).shared)
  assert [r['failed'] for r in records] == [1, 1]
  assert state.arrivals['now'] == pytest.approx(2e-9)
  assert not state.arrivals['count']


def test_a_server_that_rewrites_or_compares_models_takes_no_late_reports():
  late = flows(Buffered(1, 2))
  first = world.stages(1)[0]
  server = first.algorithm.server

  def rewriting(roles, *args):
    roles, *more = server.step(roles, *args)
    frozen = jax.tree.map(lambda x: x + 0, roles.frozen)
    return (roles._replace(frozen=frozen), *more)

  def run(server):
    algorithm = first.algorithm._replace(server=server)
    world.simulate(timed([first._replace(algorithm=algorithm)], late))

  with pytest.raises(ValueError, match='rewrites what is frozen'):
    run(server._replace(step=rewriting))
  with pytest.raises(ValueError, match='compares messages'):
    run(world.algorithms(aggregator=robust.median())[0].server)


def test_a_private_stage_wants_its_sampler_to_decide():
  (first,) = timed(world.stages(1)[:1], waits(Waiting(COHORT)))
  guard = Guard(CLIENTS, 3.0, True, lambda spent, ids, steps: spent)
  with pytest.raises(ValueError, match='its arrivals decide who reports'):
    world.simulate([first._replace(guard=guard)])
