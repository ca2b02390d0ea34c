"""What the engine tells clients, server, channel, arrivals and schedule.

The algorithm learns nothing: it writes down what it is told, and the rounds of
both stages are worked out by hand beside it. It compiles next to nothing.
"""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.core import metrics, reduction, seeds, tree
from fedms_jax.core.client import at_step, everywhere
from fedms_jax.core.contract import (
  Algorithm,
  ClientResult,
  ClientUpdate,
  Message,
  Moment,
  Prediction,
  Server,
  Start,
  identity,
)
from fedms_jax.core.types import Passes, Roles, Task
from fedms_jax.persistence.run_store import Disk, Memory
from fedms_jax.persistence.workdir import Workdir
from fedms_jax.schedules import Schedule
from fedms_jax.simulation import cohorts, driver, evaluation, observer
from fedms_jax.simulation.accounting import InFlight
from fedms_jax.simulation.state import Options, Preempted, Stage
from fedms_jax.systems.arrivals import Arrivals, Reports
from tests import world

ROUNDS, BATCH = 5, 2
ROWS = np.array([2, 3, 5, 7, 4, 6, 1, 3])  # to train, of each client
HELD = np.array([1, 2, 3, 1, 2, 3, 2, 1])  # to validate
STEPS = -(-ROWS // BATCH)
PAPER, TOLD = 10, 7  # floats of what is handed over, and of what is sent
BEFORE = Roles({'base': {'w': jnp.zeros(7)}}, {}, {})


def update():
  """Sums of all that a step knows: round, step, steps, clock, what the server
  shows, rows, and a draw by its key."""

  def begin(start):
    return jnp.zeros(TOLD)

  def step(carry, start, batch, key):
    seen = start.roles.frozen[reduction.SERVER]
    rows = jnp.sum(batch['mask'])
    now = start.moment
    told = jnp.stack(
      [jnp.float32(x) for x in (now.round, now.step, now.steps, now.clock)]
      + [seen, rows.astype(jnp.float32), jax.random.uniform(key)]
    )
    value = jnp.full(BATCH, now.step, jnp.float32)
    loss = metrics.summed(value, batch['mask'])
    return carry + told, {'loss': loss, 'score': loss}

  def finish(carry, start):
    return Message({'told': carry}), {'took': start.roles.personal['took'] + 1}

  return ClientUpdate(begin, step, finish)


def server():
  """The mean; its memory counts the rounds, and ten times that is shown."""

  def send(before, message, weight, sender):
    update, cover = tree.scale((message.update, message.cover), weight)
    return message._replace(update=update, cover=cover)

  def step(roles, memory, received, context):
    total, weight = received.update['told'], received.cover['told']
    mean = total / jnp.maximum(weight, 1)
    told = jnp.where(weight > 0, mean, roles.shared['told'])
    measured = {'count': received.count, 'server_round': context.round}
    return roles._replace(shared={'told': told}), memory + 1, measured

  return Server(
    lambda key, roles: jnp.float32(0), send, 'sum', step, lambda x: 10 * x
  )


def louder():
  """The channel that sends one more time as much each round."""
  return identity()._replace(
    init=lambda key, message: jnp.float32(1),
    encode=lambda state, message, key, sender: message._replace(
      update=tree.scale(message.update, state)
    ),
    decode=lambda state, received, key: (state + 1, received),
  )


@functools.cache
def diary():
  def begin(key, before):
    frozen = {'base': before.frozen['base'], 'paper': jnp.zeros(PAPER)}
    return Roles(frozen, {'told': jnp.zeros(TOLD)}, {'took': jnp.zeros(())})

  def predict(roles, batch, plan):
    value = 100 * roles.personal['took'] + roles.shared['told'][0]
    return Prediction({'it': value + batch['labels']}, {})

  def itself(logits, batch):
    return logits, batch['mask']

  return Algorithm(
    name='diary',
    backbone=world.backbone(),
    task=Task('itself', itself, itself),
    begin=begin,
    columns=lambda roles, batch, plan: {},
    derived=(),
    update=update(),
    predict=predict,
    server=server(),
    masks=everywhere,
    served='it',
    passes=Passes(),
    channel=louder(),
  )


def who(turn):
  """(ids, lost) of a turn: one client is lost in odd turns, and all in the
  fourth."""
  ids = np.sort((turn + np.arange(3)) % len(ROWS))
  return ids, (ids == turn) & (turn % 2 == 1) | (turn == 4)


def turns():
  """Arrivals that know from their state alone whose turn it is."""

  def due(state, step, seconds):
    (turn,) = state
    ids, lost = who(turn)
    return [turn + 1], Reports(ids, np.full(3, step), lost)

  return Arrivals([2], due)


def written(delay, seen):
  """A schedule that writes down whose scores it knows when it plans."""

  def active(state, t, ids):
    seen.append((t, [number for number, _ in state]))
    return [(True,) * world.BLOCKS] * len(ids)

  def observe(state, t, score):
    return [*state, [t, score]]

  return Schedule([], observe, active, delay)


def stages(delay=1, seen=None):
  schedule = written(delay, [] if seen is None else seen)
  return [
    Stage(name, diary(), ROUNDS, lambda _: schedule, arrivals=turns())
    for name in ('first', 'second')
  ]


@functools.cache
def federation():
  rows = iter(np.arange(world.ROWS))

  def some(sizes):
    return world.partition(*([next(rows) for _ in range(n)] for n in sizes))

  parts = [some(ROWS), some(HELD), some([2, 3, 1, 2, 1, 1, 2, 1]), some([2, 1])]
  made = world.federation()
  return made._replace(
    train=parts[0], validation=parts[1], test=parts[2], unseen=parts[3],
    pooled=np.concatenate([parts[2].rows, parts[3].rows]),
  )  # fmt: skip


def labels(rows):
  return federation().table.columns['labels'][rows]


def simulation(keep, watch, **kwargs):
  options = {'clients': 'vmap', 'reports': 4} | kwargs
  return driver.Simulation(
    federation(), BEFORE, options.pop('stages', None) or stages(),
    Options(batch_size=BATCH, **options), keeper=keep, observer=watch,
  )  # fmt: skip


class Watched(Memory):
  """Keeps what each round ends with."""

  def __init__(self):
    super().__init__()
    self.rounds = []

  def after_round(self, simulation, state, store):
    super().after_round(simulation, state, store)
    told = np.asarray(state.roles.shared['told'])
    self.rounds.append((state.stage, state.round, state.clock, told))


@functools.cache
def run(**kwargs):
  """(simulation, state, records, what each round ended with)."""
  keep, records = Watched(), observer.Recorder()
  made = simulation(keep, observer.Observers(records), **kwargs)
  return made, made.run(), records.records, keep.rounds


def draws(stage, t, client, steps):
  """One of each step: of the seed, the stage, the round, the client, and
  nothing else."""
  key = seeds.stream(0, seeds.CLIENT, stage, t)
  key = jax.random.fold_in(key, client)
  keys = [jax.random.fold_in(key, step) for step in range(steps)]
  return [float(jax.random.uniform(key)) for key in keys]


def by_hand():
  """(stage, rounds done, clock, told, capability, loss) of each round."""
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
  shown; the channel's state; whose turn it is; rows without their padding."""
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


def test_the_moment_of_a_later_step_is_the_same_from_any_earlier_one():
  first = Start(BEFORE, world.DENSE, Moment(round=3, steps=9, clock=100))
  later = at_step(at_step(first, 2), 5)
  assert later.moment == at_step(first, 5).moment == Moment(3, 5, 9, 105)


def test_a_channel_draws_by_a_key_that_no_step_has():
  """Else its noise would be what training has drawn."""
  seen, key = [], jax.random.key(7)

  def encode(state, message, key, sender):
    seen.append(jax.random.key_data(key).tolist())
    return message

  roles = diary().begin(key, BEFORE)
  deaf = diary()._replace(channel=identity()._replace(encode=encode))
  result = ClientResult(Message(roles.shared), roles.personal, {})
  reduction.sent(deaf, Start(roles, world.DENSE), result, 1.0, key, ())
  steps = [jax.random.fold_in(key, step) for step in range(20)]
  (found,) = seen
  assert found not in [jax.random.key_data(k).tolist() for k in [key, *steps]]


def test_a_stage_begins_with_nothing_of_the_last_but_its_clock():
  """Also in what is kept of clients: in each stage it is counted anew."""
  made, state, *_ = run()
  took = np.zeros(len(ROWS))
  for t in range(ROUNDS):
    ids, lost = who(2 + t)
    took[ids[~lost]] += 1
  for name in ('first', 'second'):
    store = made.keeper.store(name, state.roles.personal)
    found = store.gather(np.arange(len(ROWS)))['took']
    np.testing.assert_array_equal(found, took)


def test_the_ledger_of_a_client_that_comes_back():
  """What is frozen comes once, to each who was met, lost or not; what is
  trained comes each time; who is lost sends nothing."""
  made, state, *_ = run()
  turns = [who(2 + t) for t in range(ROUNDS)]
  met = np.unique(np.concatenate([ids for ids, _ in turns]))
  came = sum((~lost).sum() for _, lost in turns)
  for name in ('first', 'second'):
    entry = made.ledgers[name]
    assert entry.bytes_up == 4 * TOLD * came
    assert entry.bytes_down == 4 * (TOLD * 3 * ROUNDS + PAPER * len(met))
    assert entry.examples == sum(ROWS[ids].sum() for ids, _ in turns)
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
  plain, resumed = run(), None
  records = observer.Recorder()
  while resumed is None:
    try:
      watch = observer.Observers(records, Stop())
      resumed = on_disk(tmp_path / 'run', watch)
    except Preempted:
      continue
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
  (scores,) = found['models'].values()
  assert scores['pooled'] == pytest.approx(
    level.mean() + labels(data.pooled).mean()
  )
  new = [labels(data.unseen.of(k)).mean() for k in range(2)]
  first = float(state.roles.shared['told'][0])
  assert scores['unseen'] == pytest.approx(first + np.mean(new))
