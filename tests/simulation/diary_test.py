"""What the engine tells clients, server, channel, arrivals and schedule.

The rounds of both stages of `tests/diary.py` are worked out by hand.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.cluster.placement import Placement
from fedms_jax.core import seeds
from fedms_jax.core.contract import (
  Received,
)
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Passes
from fedms_jax.persistence.run_store import Disk
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.simulation import cohorts, evaluation, execution, observer
from fedms_jax.simulation.accounting import InFlight
from fedms_jax.simulation.state import Options, Preempted
from fedms_jax.systems.ledger import Meter
from tests import world
from tests.diary import (
  BASE,
  BATCH,
  BEFORE,
  HELD,
  PAPER,
  ROUNDS,
  ROWS,
  STEPS,
  TOLD,
  Watched,
  diary,
  federation,
  labels,
  run,
  simulation,
  stages,
  turns,
  who,
)


def draws(stage, t, client, steps):
  """One of each step: of the seed, the stage, the round, the client, and
  nothing else."""
  key = seeds.stream(0, Stream.CLIENT, stage, t)
  key = jax.random.fold_in(key, client)
  keys = [jax.random.fold_in(key, step) for step in range(steps)]
  return [float(jax.random.uniform(key)) for key in keys]


def by_hand():
  """(stage, rounds done, clock, told, capability, who came) of each round."""
  clock = 0
  for stage in range(2):
    took, reports = np.zeros(len(ROWS)), {}
    told = np.zeros(TOLD)
    for t in range(ROUNDS):
      ids, lost = who(2 + t)
      came = ids[~lost]
      sums = []
      for k in came:
        steps = np.arange(STEPS[k])
        rows = np.minimum(BATCH, ROWS[k] - BATCH * steps)
        ones = np.ones(STEPS[k])
        parts = t * ones, steps, STEPS[k] * ones, clock + steps
        sums.append([p.sum() for p in (*parts, 10 * t * ones, rows)])
        sums[-1].append(sum(draws(stage, t, k, STEPS[k])))
        sums[-1].append((stage + 1) * STEPS[k])
      if len(came):
        told = np.average(sums, axis=0, weights=ROWS[came]) * (t + 1)
      clock += max(STEPS[ids])
      took[came] += 1
      for k in came.tolist():
        reports.pop(k, None)
        mine = labels(federation().validation.of(k)).mean()
        reports[k] = (100 * took[k] + told[0] + mine, HELD[k])
      reports = dict(list(reports.items())[-4:])
      values, weights = zip(*reports.values(), strict=True)
      capability = np.average(values, weights=weights)
      yield stage, t + 1, clock, told, capability, came


@pytest.mark.parametrize(
  ('how', 'prefetch'), [('vmap', True), ('loop', False), ('chunk', True)]
)
def test_a_run_tells_what_the_contract_says(how, prefetch):
  """Round, step, steps and clock of the moment; the server's memory as it was
  shown; the channel's state; whose turn it is; rows without their padding;
  columns that the stage before has not left."""
  _, _, records, rounds = run(clients=how, prefetch=prefetch)
  for got, record, wanted in zip(rounds, records, by_hand(), strict=True):
    assert got[:3] == wanted[:3]
    np.testing.assert_allclose(got[3], wanted[3], rtol=1e-5)
    capability, came = wanted[4:]
    assert record['capability'] == pytest.approx(capability, rel=1e-5)
    assert record['count'] == record['clients'] == len(came)
    assert record['server_round'] == wanted[1] - 1
    losses = [
      np.repeat(np.arange(STEPS[k]), BATCH)[: ROWS[k]].mean() for k in came
    ]
    if losses:
      assert record['train_loss'] == pytest.approx(np.mean(losses))


def test_messages_apart_are_in_the_order_of_the_cohort():
  """Whichever chunk they were trained in; lanes that fill one are not there,
  and who was lost has sent nothing."""

  def received(values):
    held = jnp.array(values)
    return Received({'told': held}, {}, {'told': held}, held, held)

  chunks = [
    (np.array([3, 0]), received([30.0, 1.0])),
    (np.array([2]), received([20.0, 99.0])),
  ]
  none = jax.tree.map(lambda x: x[0] * 0, received([0.0]))
  found = execution._apart(none, chunks, 4, Placement())
  for leaf in jax.tree.leaves(found):
    np.testing.assert_array_equal(leaf, [1, 0, 20, 30])


def test_a_block_that_was_active_once_is_in_the_model_for_good():
  _, state, records, _ = run()
  assert state.ever == (False, True, True) and state.last == world.TOP.active
  assert [r['active'] for r in records] == ([2] + [6] * (ROUNDS - 1)) * 2


def test_a_stage_begins_with_nothing_of_the_last_but_its_clock():
  """Also in what is kept of clients: in each stage it is counted anew."""
  made, state, *_ = run()
  took = np.zeros(len(ROWS))
  for t in range(ROUNDS):
    ids, lost = who(2 + t)
    took[ids[~lost]] += 1
  for name in ('first', 'second'):
    store = made.run_store.store(name, state.roles.personal)
    found = store.gather(np.arange(len(ROWS)))['took']
    np.testing.assert_array_equal(found, took)


def test_a_client_takes_over_what_it_had_once():
  """And from then on it goes on from what this stage has made of it."""

  def carry(before, initial):
    return {'took': before['took'] + 100 + initial['took']}

  first, second = stages()
  carried = [first, second._replace(carry=carry)]
  made = simulation(Watched(), observer.Silent(), stages=carried)
  state = made.run()
  ids = np.arange(len(ROWS))
  (before, after) = (
    made.run_store.store(name, state.roles.personal).gather(ids)['took']
    for name in ('first', 'second')
  )
  assert set(before.tolist()) == {0, 1, 2}
  np.testing.assert_array_equal(after, np.where(before, 100 + 2 * before, 0))


def test_the_ledger_of_a_client_that_comes_back():
  """What is frozen comes once, to each who was met, lost or not; what is
  trained comes each time; who is lost sends nothing."""
  made, state, *_ = run()
  rounds = [who(2 + t) for t in range(ROUNDS)]
  met = np.unique(np.concatenate([ids for ids, _ in rounds]))
  came = sum((~lost).sum() for _, lost in rounds)
  for name in ('first', 'second'):
    entry = made.ledgers[name]
    assert entry.bytes_up == 4 * TOLD * came
    assert entry.bytes_down == 4 * (TOLD * 3 * ROUNDS + PAPER * len(met))
    assert entry.examples == sum(ROWS[ids].sum() for ids, _ in rounds)
  np.testing.assert_array_equal(np.flatnonzero(state.met), met)


def test_a_derived_row_costs_the_simulator_once():
  """However many plans read it, and although one client is lost."""
  made, state, *_ = run()
  sample, _ = made.sampler(0)
  cohort = sample([3], 1)
  assert cohort.lost.tolist() == [True, False, False]
  plans = [world.DENSE, world.DENSE, world.TOP]
  flight = InFlight(
    cohort, plans, world.DENSE.active, 0, 'run', (), (), {}, {}, None
  )  # fmt: skip
  with_rows, without = (
    made.accounting._entry(flight, rows, state.met)[0].simulator_flops
    for rows in (100.0, 0.0)
  )
  stem = world.backbone().cost.stem
  assert with_rows - without == pytest.approx(100 * stem)


def meter(**passes):
  algorithm = diary()._replace(passes=Passes(**passes))
  roles = diary().begin(jax.random.key(0), BEFORE)
  return Meter(algorithm, roles, batch=BATCH, slots=0)


def test_clients_at_once_share_what_is_frozen():
  one, three = (meter().memory(world.DENSE, k) for k in (1, 3))
  frozen = 4 * (BASE + PAPER)
  assert three == pytest.approx(3 * one - 2 * frozen)


def test_what_does_not_grow_with_examples_is_of_steps_and_of_clients():
  group = dict(
    clients=3, newcomers=0, cohort=3, examples=9, steps=5, derived=0,
    scope='run',
  )  # fmt: skip
  plain, more = (
    one.group(world.DENSE, world.DENSE.active, **group)
    for one in (meter(), meter(beside=lambda shapes: (10.0, 1000.0)))
  )
  for name in ('client_flops', 'simulator_flops'):
    beside = getattr(more, name) - getattr(plain, name)
    assert beside == pytest.approx(5 * 10 + 3 * 1000), name


@pytest.mark.parametrize('delay', [0, 1])
def test_a_schedule_plans_by_the_scores_that_it_waits_for(delay):
  """Without a delay by all of them; with one the last is still on its way,
  and of a round in which nobody reports there is none."""
  seen = []
  made = simulation(Watched(), observer.Silent(), stages=stages(delay, seen))
  made.run()
  silent = [t for t in range(ROUNDS) if who(2 + t)[1].all()]
  assert silent == [2]
  told = [
    (t, [n for n in range(t - delay) if n not in silent]) for t in range(ROUNDS)
  ]
  assert seen == told * 2


class Stop(observer.Silent):
  def stop_requested(self):
    return True


def on_disk(folder, watch):
  with Workdir.open(folder, 'flags\n', resume=True) as workdir:
    keep = Disk(workdir, 2)
    try:
      made = simulation(keep, watch)
      state = made.run(keep.restore(made))
      store = made.store(state)
      return state, store.gather(np.arange(len(ROWS))), made.ledgers
    finally:
      keep.close()


def test_a_state_that_was_saved_after_each_round_is_the_same(tmp_path):
  """Every part of it, those of server, channel and arrivals included."""
  plain, resumed, stops = run(), None, 0
  records = observer.Recorder()
  while resumed is None:
    try:
      watch = observer.Observers(records, Stop())
      resumed = on_disk(tmp_path / 'run', watch)
    except Preempted:
      stops += 1
  assert stops == 2 * ROUNDS - 1
  state, personal, ledgers = resumed
  for name, value in plain[1]._asdict().items():
    if name in ('roles', 'memory', 'channel', 'met'):
      world.same(getattr(state, name), value)
    else:
      assert getattr(state, name) == value, name
  world.same(personal, plain[0].store(plain[1]).gather(np.arange(len(ROWS))))
  assert ledgers == plain[0].ledgers
  for one, other in zip(records.records, plain[2], strict=True):
    for name in other:
      if not name.endswith('seconds'):
        np.testing.assert_equal(one[name], other[name], err_msg=name)


def test_a_run_goes_on_from_the_checkpoint_before_the_last(tmp_path):
  """Whose clients' states are kept as long as it is."""
  folder = tmp_path / 'run'
  for _ in range(3):
    with pytest.raises(Preempted):
      on_disk(folder, Stop())
  kept = sorted((folder / 'checkpoints').iterdir())
  assert [path.name for path in kept] == ['2', '3']
  shutil.rmtree(kept[1])
  state, personal, _ = on_disk(folder, observer.Silent())
  plain = run()
  world.same(state.roles, plain[1].roles)
  world.same(personal, plain[0].store(plain[1]).gather(np.arange(len(ROWS))))


def test_a_checkpoint_without_its_clients_states_is_refused(tmp_path):
  folder = tmp_path / 'run'
  for _ in range(2):
    with pytest.raises(Preempted):
      on_disk(folder, Stop())
  shutil.rmtree(folder / 'clients')
  with pytest.raises(ValueError, match='does not hold the personal states'):
    on_disk(folder, Stop())


def test_of_a_cohort_only_who_has_rows_takes_part():
  """Rows to validate have their time as well: here rounds 1 and 2."""
  data = federation()
  late = np.repeat(np.arange(len(ROWS)) == 3, ROWS)  # client 3's
  ones = np.ones(HELD.sum(), np.int32)
  data = data._replace(
    train=data.train._replace(since=9 * late),
    validation=data.validation._replace(since=ones, until=3 * ones),
  )
  sample = cohorts.sampler(data, turns(), Options(batch_size=BATCH), 0)
  found = [sample([3], t) for t in range(4)]
  for cohort in found:
    assert cohort.ids.tolist() == [4, 5]  # 3, the one that is lost, has none
    assert cohort.lost.tolist() == [False, False]
    assert cohort.weights.tolist() == ROWS[[4, 5]].tolist()
    assert cohort.arrivals == [4]
  held = [(cohort.validation >= 0).sum(1).tolist() for cohort in found]
  assert held == [[0, 0], [2, 3], [2, 3], [0, 0]]


def test_models_are_scored_on_the_rows_that_are_theirs():
  """Clients on their test rows with what they keep, newcomers with what all
  begin with, pooled rows by everybody's model."""
  made, state, *_ = run()
  found = evaluation.evaluate(made, state, evaluation.Scope(width=4))
  took = made.store(state).gather(np.arange(len(ROWS)))['took']
  level = 100 * took + float(state.roles.shared['told'][0])
  assert set(took.tolist()) == {0, 1, 2}
  data = made.federation
  own = [x + labels(data.test.of(k)).mean() for k, x in enumerate(level)]
  assert found['per_client']['it'] == pytest.approx(own)
  mine = [labels(data.test.of(k)).mean() for k in range(len(ROWS))]
  assert found['per_client']['label'] == pytest.approx(mine)
  assert found['per_client']['other'] == pytest.approx(mine)
  scores = found['models']['it']
  assert scores['pooled'] == pytest.approx(
    level.mean() + labels(data.pooled).mean()
  )
  new = [labels(data.unseen.of(k)).mean() for k in range(2)]
  first = float(state.roles.shared['told'][0])
  assert scores['unseen'] == pytest.approx(first + np.mean(new))
