"""The driver: resume, preemption, non-finite updates, budgets, ledger."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedms_jax import schedules
from fedms_jax.cluster import memory
from fedms_jax.core import seeds
from fedms_jax.core.streams import Stream
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.schedules import orders, triggers
from fedms_jax.server import averaged, robust
from fedms_jax.simulation import evaluation, observer
from fedms_jax.simulation.state import NonFiniteError, Preempted
from fedms_jax.systems import cost
from fedms_jax.systems.ledger import Entry, Meter
from tests import world

QUEUE = triggers.queue(1, world.BLOCKS, length=2, eps=9.0, step=1)


class StopAfter(observer.Silent):
  """Asks to stop after a number of finished rounds."""

  def __init__(self, rounds):
    self._left = rounds

  def round(self, record):
    self._left -= 1

  def stop_requested(self):
    return self._left <= 0


def timeless(records):
  return [
    {k: v for k, v in r.items() if not k.endswith('seconds')} for r in records
  ]


class Crash(Exception):
  """Stands for a process that dies between the store and the checkpoint."""


def on_disk(folder, crash_at=None, **kwargs):
  """A run that keeps a workdir, resumed if it is there already."""
  with Workdir.open(folder, 'flags\n', resume=True) as workdir:
    keep = Disk(workdir, 2)
    save = keep.save

    def save_or_crash(simulation, state, store):
      store.flush()
      if simulation.version(state) == crash_at:
        raise Crash
      save(simulation, state, store)

    keep.save = save_or_crash
    try:
      stages = world.stages(2, QUEUE)
      from fedms_jax.simulation import driver

      records = observer.Recorder()
      watch = observer.Observers(
        records, kwargs.pop('watch', observer.Silent())
      )
      simulation = driver.Simulation(
        world.federation(), world.start(), stages,
        driver.Options(cohort=3, batch_size=4, block=32, **kwargs),
        run_store=keep, observer=watch,
      )  # fmt: skip
      state = keep.restore(simulation)
      try:
        state = simulation.run(state)
      except (Preempted, Crash):
        return None, records.records, None
      found = evaluation.evaluate(simulation, state, evaluation.Scope())
      return state, records.records, (found, simulation.ledgers)
    finally:
      keep.close()


@pytest.mark.parametrize('personal', [0.0, 1e6], ids=['store', 'device'])
def test_a_run_stopped_at_every_round_ends_bitwise_the_same(tmp_path, personal):
  """Wherever it has its personal states."""
  whole, records, result = on_disk(tmp_path / 'whole')
  pieces = []
  for _ in itertools.count():
    state, part, found = on_disk(
      tmp_path / 'pieces', watch=StopAfter(1), personal=personal
    )
    pieces += part
    if state is not None:
      break
  assert len(pieces) == 4
  assert timeless(pieces) == timeless(records)
  world.same(state.roles, whole.roles)
  assert json.dumps(found[0]) == json.dumps(result[0])
  assert found[1] == result[1]


@pytest.mark.parametrize('version', [3, 4])
def test_personal_states_newer_than_the_checkpoint_are_forgotten(
  tmp_path, version
):
  """Also those of a stage that has no checkpoint yet (version 3)."""
  whole, _, result = on_disk(tmp_path / 'whole')
  crashed = on_disk(tmp_path / 'run', crash_at=version, personal=1e6)
  assert crashed[0] is None
  state, _, found = on_disk(tmp_path / 'run', personal=1e6)
  world.same(state.roles, whole.roles)
  assert json.dumps(found[0]) == json.dumps(result[0])


@pytest.mark.parametrize(
  'share', [1.0, pytest.param(0.0, marks=pytest.mark.slow)]
)
def test_a_process_makes_room_for_programs_from_stage_to_stage(
  monkeypatch, share
):
  """Many runs in one process, or a run of many stages, would end it else."""
  stages = world.stages(1)
  _, whole, records = world.simulate(stages)
  asked, make_room = [], memory.make_room
  monkeypatch.setattr(
    memory, 'make_room', lambda: asked.append(make_room(share=share))
  )
  _, state, again = world.simulate(stages)
  assert len(asked) == 2
  world.same(state.roles, whole.roles)
  assert timeless(again) == timeless(records)


def test_the_schedule_sees_a_score_one_round_late(tmp_path):
  """With or without a checkpoint between the rounds."""
  _, _, often = world.simulate(world.stages(4, QUEUE)[:1])
  del tmp_path
  depths = [r['depth'] for r in often]
  # Scores of rounds 0 and 1 fill the queue; round 2 may not look at round 1.
  assert depths == [1, 1, 1, 2]


def poisoned():
  data = world.federation()
  inputs = data.table.columns['inputs'].astype(np.float32)
  inputs[data.train.of(2)] = np.nan
  columns = data.table.columns | {'inputs': inputs}
  return data._replace(table=data.table._replace(columns=columns))


def test_a_non_finite_update_stops_with_round_client_and_last_metrics():
  stages = world.stages(3, triggers.dense(world.BLOCKS))[:1]
  with pytest.raises(NonFiniteError, match=r'global, round \d.* client 2\.'):
    world.simulate(stages, data=poisoned())


def test_or_the_client_is_skipped_and_counted():
  stages = world.stages(3, triggers.dense(world.BLOCKS))
  _, state, records = world.simulate(stages, data=poisoned(), on_nan='skip')
  assert sum(r['skipped'] for r in records) > 0
  for leaf in jax.tree.leaves(state.roles.shared):
    assert np.isfinite(leaf).all()


def arrived(**options):
  stages = world.stages(3, triggers.dense(world.BLOCKS))
  return world.simulate(stages, **options)


def test_who_is_lost_costs_and_sends_nothing():
  """Rounds of fewer reports, the same each time; what is lost is received and
  trained, but not sent."""
  simulation, state, records = arrived(dropout=0.4, cohort=4)
  assert arrived(dropout=0.4, cohort=4)[2][-1]['score'] == records[-1]['score']
  lost = sum(record['lost'] for record in records)
  assert 0 < lost < 24 and {r['clients'] + r['lost'] for r in records} == {4}
  whole = arrived(cohort=4)[0].ledgers['global']
  mine, rounds = simulation.ledgers['global'], records[:3]
  came = sum(r['clients'] for r in rounds) / 12
  assert mine.bytes_up == pytest.approx(whole.bytes_up * came)
  assert mine.bytes_down == whole.bytes_down
  assert mine.client_flops == pytest.approx(whole.client_flops)
  assert mine.simulator_flops < whole.simulator_flops


@pytest.mark.parametrize('reduction', ['sum', 'stack'])
def test_a_round_in_which_nobody_reports_changes_nothing(reduction):
  aggregator = world.MEAN if reduction == 'sum' else robust.median()
  stages = world.stages(2, triggers.dense(3), aggregator=aggregator)
  simulation, state, records = world.simulate(stages, dropout=1.0)
  assert [r['clients'] for r in records] == [0] * 4
  first = jax.jit(stages[0].algorithm.begin)(
    seeds.stream(0, Stream.INIT, 0), world.start()
  )
  world.same(state.roles.frozen['global'], first.shared)
  assert simulation.ledgers['global'].bytes_up == 0
  assert simulation.ledgers['global'].bytes_down > 0
  found = evaluation.evaluate(simulation, state, evaluation.Scope())
  assert np.isfinite(found['models']['mixture']['own_mean'])


def test_rows_have_their_time():
  """A row trains in the rounds in which it exists; who has none is absent."""
  data = world.federation()
  since = np.zeros(len(data.train.rows), np.int32)
  since[: 6 * 3] = 2  # clients 0 to 2
  train = data.train._replace(since=since, until=since * 0 + 3)
  assert train.at(1).sizes().tolist() == [0, 0, 0, 6, 6, 6]
  assert not train.at(3).sizes().any()
  stages = world.stages(4, triggers.dense(3))[:1]
  _, state, records = world.simulate(
    stages, data=data._replace(train=train), cohort=6
  )
  assert [r['clients'] for r in records] == [3, 3, 6, 0]
  assert state.last == (True,) * 3  # that of the round before, where nobody is


def test_a_stage_sees_its_view_of_the_data():
  def first_half(data):
    train = data.train
    return data._replace(
      train=train._replace(offsets=np.minimum(train.offsets, 18))
    )

  stages = world.stages(2, triggers.dense(3))[:1]
  stages = [stages[0]._replace(view=first_half)]
  simulation, _, _ = world.simulate(stages, cohort=6, prefetch=False)
  sample, arrivals = simulation.sampler(0)
  assert simulation.ledgers['global'].examples == 2 * 18
  assert len(sample(arrivals.init, 0).ids) == 3


def test_budgets_group_clients_and_average_over_holders():
  order = orders.order('top_down', world.BLOCKS, 0)
  schedule = schedules.schedule(
    triggers.dense(world.BLOCKS), order, budgets=(1, 3)
  )
  stages = world.stages(1)[:1]
  stages = [stages[0]._replace(schedule=lambda handover: schedule)]
  found = {
    how: world.simulate(stages, cohort=6, clients=how)
    for how in ('loop', 'vmap')
  }
  budgets = [schedules.budget((1, 3), i, 0) for i in range(6)]
  assert set(budgets) == {1, 3}
  (record,) = found['loop'][2]
  assert record['depth'] == pytest.approx(np.mean(budgets))
  world.close(found['loop'][1].roles.shared, found['vmap'][1].roles.shared)


def test_importance_orders_blocks_by_their_gradient():
  seen = []

  def schedule(handover):
    seen.append(handover.importance())
    order = orders.order('importance', world.BLOCKS, 0, seen[-1])
    trigger = triggers.manual([1], world.BLOCKS)
    return schedules.schedule(trigger, order)

  stage = world.stages(1)[0]
  probe, _ = world.first_stage(optimizer=optax.sgd(1.0))
  stages = [stage._replace(schedule=schedule, probe=probe)]
  _, state, _ = world.simulate(stages)
  assert len(seen[0]) == world.BLOCKS
  assert min(seen[0]) > 0
  assert state.last == tuple(b == np.argmax(seen[0]) for b in range(3))


def test_evaluation_serves_newcomers_with_the_starting_state():
  simulation, state, _ = world.reference()
  found = evaluation.evaluate(simulation, state, evaluation.Scope())
  assert set(found['models']) == {'pretrained', 'global', 'local', 'mixture'}
  mixture, expert = (found['models'][n] for n in ('mixture', 'global'))
  # A newcomer's local expert is the global one still: mixing changes nothing.
  assert mixture['unseen'] == expert['unseen']
  assert len(found['per_client']['local']) == 6
  assert 0 < found['gate_weight'] < 1


def test_the_ledger_counts_only_what_is_active():
  """Bytes by hand: R (d_in + d_out) floats per target and block, and the
  head."""
  simulation, _, records = world.reference()
  lora = 2 * 2 * (world.WIDTH + world.WIDTH) * 4
  head = (world.WIDTH + 1) * world.CLASSES * 4
  depths = [r['depth'] for r in records if r['stage'] == 'global']
  expected = sum(3 * (d * lora + head) for d in depths)
  entry = simulation.ledgers['global']
  assert entry.bytes_up == expected
  # Down comes what has ever been active, and nothing is handed over yet.
  assert entry.bytes_down == expected
  # Every client holds 6 rows; round t has 3 of them.
  assert entry.examples == 3 * 6 * len(depths)
  gate = simulation.ledgers['personal']
  assert gate.bytes_down > gate.bytes_up  # the global expert goes down once


def test_flops_grow_with_depth_and_stop_at_the_boundary():
  backbone = world.backbone()
  work = world.first_stage()[0].passes
  plans = [
    world.Plan((False,) * (3 - d) + (True,) * d, 3 - d) for d in (1, 2, 3)
  ]
  spent = [
    cost.simulator_flops(
      backbone.cost, work, plan, 10.0, examples=1, derived=0, scope='run'
    )
    for plan in plans
  ]
  step = spent[1] - spent[0]
  block = backbone.cost.block
  assert step == pytest.approx(2 * block + 30)
  # All blocks are one loop, which computes the last one whole, as the others.
  more = 2 * (block - backbone.cost.last.flops)
  assert more > 0 and spent[2] - spent[1] == pytest.approx(step + more)
  client = [cost.client_flops(backbone.cost, work, p, 10.0) for p in plans]
  # A device runs every block forward: only the backward pass gets longer.
  assert client[1] - client[0] == pytest.approx(block + 30)


def test_devices_run_whole_blocks_and_the_simulator_what_is_read():
  algorithm, roles = world.first_stage()
  own, passes = algorithm.backbone.cost, algorithm.passes
  each = [cost.client_flops(c, passes, world.TOP, 10.0)
          for c in (own, own.whole())]  # fmt: skip
  assert each[0] == each[1]
  meter = Meter(algorithm, roles, batch=4, slots=2)
  spent = meter.group(
    world.TOP, world.TOP.active, clients=1, newcomers=0, cohort=1,
    examples=4.0, steps=1.0, derived=0, scope='step',
  )  # fmt: skip
  # Forward and back, of the one block above the prefix.
  less = 4 * 2 * (own.block - own.last.flops)
  assert spent.client_flops - spent.simulator_flops == pytest.approx(less)
  assert spent.peak_client_memory > meter.memory(world.TOP)


def test_entries_add_up_but_peaks_do_not():
  a = Entry(1.0, 2.0, 3.0, 4.0, 5, 6.0, 7.0, 8.0)
  b = Entry(1.0, 1.0, 1.0, 1.0, 1, 1.0, 9.0, 1.0)
  assert a.plus(b) == Entry(2.0, 3.0, 4.0, 5.0, 6, 7.0, 9.0, 8.0)


def test_a_users_own_aggregator_and_schedule_are_enough():
  """The contract of the README's library page."""

  def merge(before, received):
    del before
    return jax.tree.map(lambda x: jnp.median(x, axis=0), received.update)

  median = averaged.Aggregator(averaged.as_trained, 'stack', merge)
  stages = world.stages(1, triggers.dense(3), aggregator=median)[:1]
  _, state, _ = world.simulate(stages, cohort=3, clients='loop')
  wide = world.simulate(stages, cohort=3, clients='vmap')[1]
  world.close(state.roles.shared, wide.roles.shared)
