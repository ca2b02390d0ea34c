"""An algorithm that learns nothing: it writes down what the engine tells it.

With its server, channel, arrivals and schedule, a federation of uneven clients
and a run of two stages that compiles next to nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import metrics, reduction, tree
from fedms_jax.core.client import everywhere
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Message,
  Prediction,
  Server,
  identity,
)
from fedms_jax.core.types import Passes, Roles, Task
from fedms_jax.persistence.run_store import Memory
from fedms_jax.schedules import Schedule
from fedms_jax.simulation import driver, observer
from fedms_jax.simulation.state import Options, Stage
from fedms_jax.systems.arrivals import Arrivals, Reports
from tests import world

ROUNDS, BATCH = 5, 2
ROWS = np.array([2, 3, 5, 7, 4, 6, 1, 3])  # to train, of each client
HELD = np.array([1, 2, 3, 1, 2, 3, 2, 1])  # to validate
STEPS = -(-ROWS // BATCH)
# Floats of the base, of what is handed over, and of what is sent.
BASE, PAPER, TOLD = 7, 10, 8
BEFORE = Roles({'base': {'w': jnp.zeros(BASE)}}, {}, {})


def update():
  """Sums of all that a step knows: round, step, steps, clock, what the server
  shows, rows, a draw by its key, and a derived column."""

  def begin(start):
    return jnp.zeros(TOLD)

  def step(carry, start, batch, key):
    seen = start.roles.frozen[reduction.SERVER]
    rows = jnp.sum(batch['mask'])
    now = start.moment
    told = jnp.stack(
      [jnp.float32(x) for x in (now.round, now.step, now.steps, now.clock)]
      + [seen, rows.astype(jnp.float32), jax.random.uniform(key)]
      + [jnp.max(batch['stage'])]
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
    # The number of the stage.
    paper = before.frozen.get('paper', jnp.zeros(PAPER)) + 1
    frozen = {'base': before.frozen['base'], 'paper': paper}
    return Roles(frozen, {'told': jnp.zeros(TOLD)}, {'took': jnp.zeros(())})

  def columns(roles, batch, plan):
    number = roles.frozen['paper'][0]
    return {'stage': jnp.full(batch['labels'].shape, number)}

  def predict(roles, batch, plan):
    value = 100 * roles.personal['took'] + roles.shared['told'][0]
    logits = {'it': value + batch['labels'], 'other': batch['labels']}
    return Prediction(logits, {'label': batch['labels']})

  def itself(logits, batch):
    return logits, batch['mask']

  return Algorithm(
    name='diary',
    backbone=world.backbone(),
    task=Task('itself', itself, itself),
    begin=begin,
    columns=columns,
    derived=('stage',),
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
  """A schedule that writes down whose scores it knows when it plans. Block 1
  is active in the first round, and then the last one."""

  def active(state, t, ids):
    seen.append((t, [number for number, _ in state]))
    return [(False, t == 0, t > 0)] * len(ids)

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
    Options(batch_size=BATCH, **options), run_store=keep, observer=watch,
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
