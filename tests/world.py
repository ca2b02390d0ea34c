"""A small world that the tests share: data, model, stages, a simulation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedms_jax import schedules
from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms
from fedms_jax.core import reduction, rounds, tree
from fedms_jax.core.contract import Clients, Work
from fedms_jax.core.types import Federation, Partition, Plan, Table
from fedms_jax.models import gate, tasks, transformer, vit
from fedms_jax.persistence import run_store
from fedms_jax.schedules import orders, triggers
from fedms_jax.server import averaged
from fedms_jax.simulation import driver, observer
from fedms_jax.simulation.state import Options, Stage

BLOCKS, WIDTH, CLASSES, ROWS = 3, 8, 4, 96
TARGETS = ('attn/q', 'attn/v')
LORA = lora.Spec(rank=2, alpha=4.0, targets=TARGETS)
DENSE = Plan((True,) * BLOCKS, 0)
TOP = Plan((False, False, True), 2)
GAP = Plan((True, False, True), 0)


@functools.cache
def backbone():
  shape = transformer.TransformerConfig(
    blocks=BLOCKS, width=WIDTH, heads=2, mlp_width=12
  )
  config = vit.VitConfig(shape, image=8, channels=1, patch=4, classes=CLASSES)
  return vit.backbone(config)


@functools.cache
def start():
  """The roles before stage 1, of a model with random weights."""
  model = backbone()
  base = jax.jit(model.init)(jax.random.key(0))
  return fedms.start(base, model.init_head(jax.random.key(1)))


# One object each, so that tests share compiled programs.
# Adam's usual eps would turn the rounding of a zero gradient into a step.
SGD, ADAM = optax.sgd(0.5), optax.adam(0.01, eps=1e-2)
DECAY = optax.adamw(0.1, weight_decay=0.5)
PLAIN = optax.sgd(1.0)
# Of methods that are built of flags, for which these are the usual ones.
RATES = {'shared': 3e-3, 'personal': 1e-3, 'gate': 1e-4}
TASK, MEAN = tasks.classification(), averaged.mean()


def setting(optimizer=SGD, outer=PLAIN, aggregator=MEAN):
  return fedms.Setting(backbone(), TASK, optimizer, outer, aggregator, LORA)


def spec(**kwargs):
  return gate.GateSpec(width=WIDTH, classes=CLASSES, **kwargs)


def trained(roles, scale=0.3):
  """The roles with LoRA that does something: every B is random."""
  keys = iter(jax.random.split(jax.random.key(9), 99))

  def moved(path, x):
    if path[-1].key in ('b', 'kernel', 'bias'):
      return x + scale * jax.random.normal(next(keys), x.shape)
    return x

  shared = jax.tree_util.tree_map_with_path(moved, roles.shared)
  return roles._replace(shared=shared)


@functools.cache
def first_stage(**kwargs):
  """(algorithm, roles) of stage 1."""
  algorithm = fedms.global_stage(setting(**kwargs))
  return algorithm, jax.jit(algorithm.begin)(jax.random.key(2), start())


@functools.cache
def second_stage(choice=None, **kwargs):
  """(algorithm, roles) of stage 2, after a stage 1 that learned something."""
  _, before = first_stage()
  choice = choice or fedms.Personal(spec())
  algorithm = fedms.personal_stage(setting(**kwargs), choice)
  begin = jax.jit(algorithm.begin)
  return algorithm, begin(jax.random.key(3), trained(before))


def columns(seed=0):
  """Images whose class shows in one bright quadrant, int32 labels."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
  images = rng.integers(0, 128, (ROWS, 8, 8, 1)).astype(np.uint8)
  for image, label in zip(images, labels, strict=True):
    y, x = 4 * (label // 2), 4 * (label % 2)
    image[y : y + 4, x : x + 4] += 100
  return {'inputs': images, 'labels': labels}


@functools.cache
def table():
  # A test may ask first within a function that is traced.
  with jax.ensure_compile_time_eval():
    return jax.tree.map(jnp.asarray, columns())


def cohort_rows(clients=3, steps=2, batch=4):
  """Row numbers [K, S, B]; client 1 has a padded batch and a padded step."""
  rng = np.random.default_rng(1)
  rows = 1 + rng.permutation(ROWS - 1)[: clients * steps * batch]
  rows = rows.astype(np.int32).reshape(clients, steps, batch)
  if clients > 1:
    rows[1, 0, 3:] = -1
    rows[1, 1:] = -1
  return rows


def stacked(one, count):
  return jax.tree.map(lambda x: jnp.stack([x] * count), one)


def clients(rows, personal=None, weights=None, ids=None):
  """A chunk of clients, by default without personal state."""
  count = len(rows)
  if weights is None:
    weights = (rows >= 0).sum((1, 2)).astype(np.float32)
  ids = np.arange(count, dtype=np.uint32) if ids is None else ids
  return Clients(ids, {} if personal is None else personal, rows, weights)


def close_round(algorithm, roles, totals, memory=None):
  """(roles, memory, measured) after the server's step."""
  if memory is None:
    _, memory, _ = reduction.begin(algorithm, roles, 0)
  roles, memory, _, measured = reduction.close(
    algorithm, roles, memory, (), totals, jax.random.key(5), 0,
    None, None, public(algorithm),
  )  # fmt: skip
  return roles, memory, measured


def public(algorithm):
  """What the server of an algorithm reads of the public rows, or None."""
  size = algorithm.public
  if not size:
    return None
  rows = {name: x[-size:] for name, x in table().items()}
  return rows | {'mask': jnp.ones(size, bool)}


def train(algorithm, roles, rows, plan=DENSE, *, how='vmap', data=None,
          weights=None, ids=None, personal=None):  # fmt: skip
  """One round over all clients: (shared, personal [K, ...], sums)."""
  count = len(rows)
  data = table() if data is None else data
  if weights is None:
    weights = (rows >= 0).sum((1, 2)).astype(np.float32)
  ids = np.arange(count, dtype=np.uint32) if ids is None else ids
  personal = stacked(roles.personal, count) if personal is None else personal
  roles, memory, channel = reduction.begin(algorithm, roles, 0)
  totals = reduction.empty(algorithm, roles)
  work = Work(data, jax.random.key(5), channel=channel)
  width = count if how == 'vmap' else 1
  together = 2 if how == 'unrolled' else 1
  parts = []
  for i in range(0, count, width):
    cut = slice(i, i + width)
    mine = Clients(ids[cut], tree.rows(personal, cut), rows[cut], weights[cut])
    totals, new, sums = rounds.train(
      algorithm, plan, roles, work, totals, mine, together=together
    )
    parts.append((new, sums))
  roles, *_ = reduction.close(
    algorithm, roles, memory, channel, totals, work.key, 0
  )
  new, sums = jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
  return roles.shared, new, sums


def partition(*groups):
  sizes = [len(g) for g in groups]
  return Partition(
    np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    np.concatenate(groups).astype(np.int32),
  )


def federation(clients=6, unseen=1):
  """Each client has 10 rows: 6 to train, 2 to validate, 2 to test."""
  pieces = np.arange((clients + unseen) * 10).reshape(-1, 10)
  mine = pieces[:clients]
  test = partition(*mine[:, 8:])
  new = partition(*pieces[clients:])
  return Federation(
    Table(columns(), tuple('abcd')),
    partition(*mine[:, :6]),
    partition(*mine[:, 6:8]),
    test,
    new,
    np.concatenate([test.rows, new.rows]),
    np.arange(80, ROWS, dtype=np.int32),
  )


@functools.cache
def algorithms(**kwargs):
  """The algorithms of both stages."""
  choice = fedms.Personal(spec())
  return (
    fedms.global_stage(setting(**kwargs)),
    fedms.personal_stage(setting(**kwargs), choice),
  )


def stages(rounds_each=3, trigger=None, **kwargs):
  """Both stages of FedMS, by default a block deeper each round, top down."""
  trigger = trigger or triggers.fixed(1, BLOCKS, interval=1, step=1)
  order = orders.order('top_down', BLOCKS, 0)

  def schedule(handover):
    return schedules.delayed(schedules.schedule(trigger, order), 1)

  first, second = algorithms(**kwargs)
  return [
    Stage('global', first, rounds_each, schedule),
    Stage('personal', second, rounds_each, schedule),
  ]


def simulate(
  stages, *, keep=None, watch=None, state=None, data=None, final=None,
  **options
):  # fmt: skip
  """(simulation, final state, records)."""
  usual = {'cohort': 3, 'batch_size': 4, 'block': 32, 'rates': RATES}
  options = usual | options
  records = observer.Recorder()
  watchers = observer.Observers(records, *([watch] if watch else []))
  simulation = driver.Simulation(
    data or federation(), start(), stages, Options(**options),
    run_store=keep or run_store.Memory(), observer=watchers,
  )  # fmt: skip
  simulation.final = final
  return simulation, simulation.run(state), records.records


@functools.cache
def reference():
  """A run of two rounds a stage that several tests compare with."""
  return simulate(stages(2), scope='run')


def close(a, b, atol=2e-5):
  """Asserts that two trees agree to float32 rounding."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4)


def same(a, b):
  """Asserts that two trees agree bitwise."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
