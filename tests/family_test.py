"""Laws that every method of the catalog obeys, on a toy world.

One program for four clients, and those of the loop, serve all laws of a
method: what changes between them are weights, rows and the clients' order.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedms_jax.channel import privacy
from fedms_jax.core import reduction, rounds, tree
from fedms_jax.core.alone import alone, personal
from fedms_jax.core.contract import (
  Clients,
  Message,
  Moment,
  Received,
  Sender,
  Start,
  Work,
  identity,
)
from fedms_jax.core.types import Plan, Roles
from fedms_jax.models.family import Model
from fedms_jax.shell import (
  attacks,
  build,
  catalog,
  config,
  methods,
  privacy_rules,
)
from fedms_jax.simulation import derivation, needs
from tests import world
from tests.algorithms import clip_world

FLAGS = {
  # Adam's usual eps would turn the rounding of a zero gradient into a step.
  'client.optimizer': 'sgd',
  'client.learning_rate': 0.5,
  'lora.rank': 2,
  'lora.alpha': 4.0,
  'prompt.length': 3,
  'pfedmoap.width': 4,
  'pfedmoap.heads': 2,
  'pfedmoap.experts': 3,
  'pfedprompt.rows': 5,
  'fedotp.rounds': 9,
  'pfedmma.blocks': 2,
  'pfedmma.width': 3,
  # A difference of losses over a small step would be mostly their rounding.
  'fedvz.step': 0.1,
  'fgl.per_class': 32,
  'fgl.epochs': 1,
  'femam.clusters': 2,
  'koala.steps': 2,
  'koala.batch_size': 4,
  'fedpft.interval': 1,
  'fedpft.align_steps': 2,
  'fedpft.batch_size': 4,
}
# Their clients have steps of their own, and no optimizer.
OWN = {'client.optimizer': 'adam', 'client.learning_rate': 0.003}
SEARCH = {'dimension': 6, 'sigma': 0.5, 'scale': 20.0}
MORE = {
  'raffm': {'raffm.mlp': '0.5', 'raffm.head': '0.5', 'model.heads': 2},
  'hetlora': {'lora.ranks': '1,2', 'hetlora.prune': 0.5},
  'mezo': {'mezo.step': 0.1},
  'fedkseed': OWN
  | {'fedkseed.seeds': 20, 'fedkseed.step': 0.1, 'fedkseed.rate': 0.1},
  'bbt': OWN | {f'bbt.{k}': x for k, x in SEARCH.items()},
  'fedbpt': OWN | {f'fedbpt.{k}': x for k, x in SEARCH.items()},
  'blackvip': OWN | {'blackvip.side': 2, 'blackvip.step': 0.1},
}
PLAN = Plan((False, True, True), 1)
RATES = {
  name: jnp.float32(rate)
  for name, rate in build.rates(
    config.from_values(
      {'client.learning_rate': 0.5, 'client.personal_learning_rate': 1e-3}
    )
  ).items()
}
K, BAD = 4, 3  # clients; the one whose rows are not finite
ROWS = world.cohort_rows(clients=K)
NAN_ROW = np.setdiff1d(np.arange(1, world.ROWS), ROWS)[0]  # 0 is padding's


class Case(NamedTuple):
  """A stage of a method, at the start of a round; memory: of the server.
  fresh: whether its clients have rows beside those of their steps."""

  algorithm: Any
  roles: Any
  memory: Any
  plan: Plan
  fresh: bool = False


@functools.cache
def case(name: str, stage: int) -> Case:
  """The stage on a small ViT, or where it needs one, a small CLIP."""
  values = FLAGS | MORE.get(name, {}) | {'algorithm.name': name}
  clip = catalog.METHODS[name].text or name == 'fedclip'
  if clip:
    values |= {'model.name': 'a/clip', 'model.head': 'zero_shot'}
  found = config.from_values(values)
  model = clip_world.model() if clip else Model(world.backbone(), {})
  roles = clip_world.start() if clip else world.start()
  for number, made in enumerate(methods.stages(found, model, world.CLASSES)):
    algorithm = made.algorithm
    roles = world.trained(jax.jit(algorithm.begin)(jax.random.key(2), roles))
    if number == stage:
      break
  variant = algorithm.variant and algorithm.variant(0, 0)
  roles, memory, _ = reduction.begin(algorithm, roles, 0)
  # Its clients may have the first blocks alone.
  active = PLAN.active[: algorithm.backbone.blocks]
  plan = Plan(active, PLAN.boundary, variant)
  return Case(algorithm, roles, memory, plan, made.fresh is not None)


def stages(name: str) -> range:
  if name == 'fedpft':  # in its first one the server is alone
    return range(1, 2)
  return range(2 if name == 'fedms' else 1)


CASES = [(name, i) for name in catalog.METHODS for i in stages(name)]
# One of each kind of step, message and server; the others are slow, and so is
# FedMS's first stage, whose kind is that of LoRA that is averaged.
QUICK = (
  'fedms fedavg scaffold fedrep ditto flora prefix koala fedvz fedbpt mezo '
  'raffm ridge'
).split()
every = pytest.mark.parametrize(
  ('name', 'stage'),
  [
    pytest.param(
      name,
      i,
      id=f'{name}-{i}',
      marks=pytest.mark.slow
      if name not in QUICK or (name, i) == ('fedms', 0)
      else (),
    )
    for name, i in CASES
  ],
)


@functools.cache
def table():
  """The table of the world with float inputs, of which one is not finite."""
  inputs = np.array(world.columns()['inputs'], np.float32)
  inputs[NAN_ROW] = np.nan
  return {'inputs': jnp.asarray(inputs), 'labels': world.table()['labels']}


def clients(case: Case, rows=ROWS, weights=None, ids=None) -> Clients:
  personal = world.stacked(case.roles.personal, len(rows))
  made = world.clients(rows, personal, weights, ids)
  return made._replace(fresh=rows[:, 0]) if case.fresh else made


def trained(case: Case, chunk: Clients, how: str = 'vmap'):
  """(totals, personal [K, ...], sums)."""
  summing = case.algorithm.server.reduction == 'sum'
  empty = reduction.empty(case.algorithm, case.roles)
  work = Work(table(), jax.random.key(5), Moment(rates=RATES))
  width = 1 if how == 'loop' else len(chunk.ids)
  totals, parts = empty if summing else None, []
  for i in range(0, len(chunk.ids), width):
    some = tree.rows(chunk, slice(i, i + width))
    got, *rest = rounds.train(
      case.algorithm, case.plan, case.roles, work, totals, some
    )
    totals = got if summing else None
    parts.append((got, *rest))
  joined = jax.tree.map(
    lambda *xs: jnp.concatenate(xs), *(p[1:] for p in parts)
  )
  if not summing:
    totals = jax.tree.map(
      lambda *xs: jnp.concatenate(xs), *(p[0] for p in parts)
    )
  return totals, *joined


def closed(case: Case, totals: Received):
  """(shared, memory) after the server's step."""
  roles, memory, _ = world.close_round(
    case.algorithm, case.roles, totals, case.memory
  )
  return roles.shared, memory, roles.frozen


@functools.cache
def usual(name, stage):
  one = case(name, stage)
  return trained(one, clients(one))


@every
def test_wide_vmap_equals_the_loop(name, stage):
  one, wide = case(name, stage), usual(name, stage)
  before = rounds.step_chunk.program()._cache_size()
  for x, y in zip(wide, trained(one, clients(one), 'loop'), strict=True):
    world.close(x, y, atol=1e-4)
  # Its first step is as its last: of one type, and so of one program.
  assert rounds.step_chunk.program()._cache_size() <= before + 1


@every
def test_the_order_of_the_cohort_and_who_weighs_nothing_do_not_matter(
  name, stage
):
  """One program does it all: nothing of it is compiled again."""
  one, turned = case(name, stage), np.array([2, 0, 3, 1])
  expected = closed(one, usual(name, stage)[0])[0]
  before = rounds.step_chunk.program()._cache_size()
  chunk = clients(one)
  other = trained(one, tree.rows(chunk, turned))
  world.close(closed(one, other[0])[0], expected, atol=1e-4)
  for x, y in zip(other[1:], usual(name, stage)[1:], strict=True):
    world.close(x, tree.rows(y, turned), atol=1e-4)
  # The last client once with no weight, and once with no finite result.
  weights = np.array(chunk.weights)
  weights[BAD] = 0
  ignored = trained(one, chunk._replace(weights=weights))
  rows = np.array(ROWS)
  rows[BAD, 0, 0] = NAN_ROW
  skipped = trained(one, chunk._replace(rows=rows))
  world.close(closed(one, skipped[0])[0], closed(one, ignored[0])[0], atol=1e-4)
  np.testing.assert_array_equal(skipped[2]['skipped'][:, 0], [0, 0, 0, 1])
  world.same(skipped[0].count, ignored[0].count)
  for name, sums in skipped[2].items():
    assert name == 'skipped' or not np.asarray(sums[BAD]).any(), name
  before_it = tree.rows(chunk.personal, BAD)
  world.same(tree.rows(skipped[1], BAD), before_it)
  assert rounds.step_chunk.program()._cache_size() == before


@every
def test_a_client_may_train_alone(name, stage):
  """It keeps a server's tree and a personal one, as it got them."""
  one = case(name, stage)
  mine = personal(one.roles.shared, one.roles.personal)
  chunk = world.clients(ROWS, world.stacked(mine, K))

  algorithm = alone(one.algorithm)
  work = Work(table(), jax.random.key(5), Moment(rates=RATES))
  roles = Roles(one.roles.frozen, {}, mine)
  none = reduction.empty_shapes(algorithm, roles)
  args = needs.arguments(algorithm, one.plan, roles, work, none, chunk)
  finish = rounds.finish_chunk.program()
  totals, kept, _ = finish.eval_shape(*args.finish)
  assert not jax.tree.leaves((totals.update, totals.extras))
  shapes = jax.eval_shape(lambda: chunk.personal)
  assert jax.tree.map(lambda x: x.shape, kept) == jax.tree.map(
    lambda x: x.shape, shapes
  )


@every
def test_columns_of_a_boundary_lead_to_those_of_one_above(name, stage):
  """In one pass, as `columns` would give them apart; the others stay."""
  one = case(name, stage)
  if one.algorithm.deeper is None:
    pytest.skip('its columns are of no boundary, or no pass leads on')
  plan = Plan((True,) * one.algorithm.backbone.blocks, 2)
  shared = one.roles._replace(personal=None)
  raw = jax.tree.map(lambda x: x[:NAN_ROW], table())

  def derived(boundary, lower=()):
    plans = plan._replace(boundary=boundary)
    return derivation.derive(one.algorithm, shared, raw, plans, lower)

  found, others = derived(2, (0, 1))
  world.close(found, derived(2)[0])
  assert set(others) == {0, 1}
  for boundary, columns in others.items():
    world.close(found | columns, derived(boundary)[0])


C = 0.25  # of the clip


def anything(message, worst):
  """A message of the same form with such numbers in it."""
  keys = iter(jax.random.split(jax.random.key(3), 999))

  def of(x):
    values = worst * jax.random.normal(next(keys), x.shape)
    return values.astype(x.dtype)

  return jax.tree.map(of, message)


@every
def test_one_client_moves_a_private_sum_by_no_more_than_the_clip(name, stage):
  """Whatever it sends, extras included; who held what is not asked."""
  one = case(name, stage)
  plain = reduction.message_shapes(one.algorithm, one.roles)[0]
  how = privacy.central(privacy.Central(C, 0.0))
  state = {'clip': jnp.float32(C)}

  @jax.jit
  def moved(worst):
    bad = anything(plain, worst)
    sent = how.encode(state, bad, jax.random.key(0), Sender())
    return jnp.sqrt(tree.squared_norm((sent.update, sent.extras)))

  for worst in (1e-3, 1.0, 1e30, float('nan'), float('inf')):
    assert float(moved(worst)) <= C * (1 + 1e-5)
  if jax.tree.leaves(plain.update):
    assert float(moved(1e3)) > C * (1 - 1e-5)


def private(name: str) -> bool:
  """Whether a run of the method may be private by flag."""
  return name not in privacy_rules.REFUSED


@every
def test_methods_that_no_noisy_sum_serves_are_those_that_are_refused(
  name, stage
):
  """They keep messages apart, send more than a change, or nothing; but for
  those whose message is a sum over rows, however much each client counts."""
  one = case(name, stage)
  message = reduction.message_shapes(one.algorithm, one.roles)[0]
  # These serve metrics alone, and a private run has none.
  extras = {
    key: x
    for key, x in message.extras.items()
    if key not in ('sketch', 'drift', 'statistics')
  }
  served = one.algorithm.server.reduction == 'sum' and not extras
  served &= name != 'ffdapt'  # what is frozen says how many rows there are
  served &= one.algorithm.crossing is None
  sent = jax.tree.leaves(message.update), 'statistics' in message.extras
  served = served and any(map(bool, sent))
  how = privacy.central(privacy.Central(C, 0.0))
  if served:
    try:
      how.init(jax.random.key(0), message._replace(extras=extras))
    except ValueError:  # who held what is said leaf by leaf
      served = False
  assert served == private(name)


@every
def test_methods_without_a_change_to_falsify_are_those_that_attacks_refuse(
  name, stage
):
  """An attack scales what is sent: of a client that has learned nothing this
  must be zeros, and there must be some."""
  one = case(name, stage)
  before = tree.narrow(one.roles.shared, one.algorithm.masks(one.plan)[0])
  extras = usual_extras(one)
  message = reduction.covered(Message(before, extras))
  sent = one.algorithm.server.send(before, message, jnp.float32(1), Sender())
  found = jax.tree.leaves(sent.update)
  falsified = bool(found) and not any(np.asarray(x).any() for x in found)
  assert falsified == (name not in attacks.REFUSED)


def usual_extras(one: Case):
  """What a client of the case sends beside its update, of ones."""

  def sent(roles):
    start = Start(roles, one.plan, Moment(steps=1))
    carry = one.algorithm.update.begin(start)
    return one.algorithm.update.finish(carry, start)[0].extras

  found = jax.eval_shape(sent, one.roles)
  return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), found)


def silence(state, received, key):
  del key
  return state, jax.tree.map(jnp.zeros_like, received)


SILENT = identity()._replace(decode=silence)


@every
def test_a_channel_that_releases_zeros_leaves_the_server_unmoved(name, stage):
  """Neither model, nor memory, nor what is frozen: all that clients send
  passes through the channel."""
  one = case(name, stage)
  deaf = one._replace(algorithm=one.algorithm._replace(channel=SILENT))
  shared, memory, frozen = closed(deaf, usual(name, stage)[0])
  world.same(shared, one.roles.shared)
  world.same(memory, one.memory)
  world.same(frozen, one.roles.frozen)
  moved = closed(one, usual(name, stage)[0])
  # It is not that nothing would have moved.
  alone = name in ('local', 'bbt')
  assert bool(tree.equal(moved[0], one.roles.shared)) == alone
