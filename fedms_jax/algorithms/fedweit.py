"""FedWeIT (Yoon et al., ICML 2021, arXiv 2003.03196): what all share, masked,
and what is a task's own, with a mixture of what others have of theirs.

For task t a client has the parameters

  theta_t = B * sigmoid(m_t) + A_t + sum_j a_tj A_j

with B of all clients, m_t a number for each output of a layer, A_t sparse, and
A_j those that clients had of the task before, which the server keeps and
nobody trains. Its loss is that of theta_t, and beside it

  sparsity * |A_t|_1 + pull / 2 * sum_i ||B * sigmoid(m_i) + A_i - W_i||^2

over the other tasks i that it has met, with W_i what stood there when it
trained on them last: as B moves, m_i and A_i follow. It sends B of those
outputs whose |m_t| is not among the smallest, and of A_t what is not near zero.

Ours: B, A and theta are LoRA, theirs and ours (a, b) alike, and the head is of
all; m begins at 0, A_t at B / 3; the A_j are the newest that clients sent in
the task before, and are known to clients from the second round of a task on; of
a task that a client has not met it has B. The published code multiplies the
pull by 100 and trains by Adam.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.algorithms import adapted, adapter_pool, fedms, two_experts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.continual import KEY, TASK
from fedms_jax.core import client, joined, tree
from fedms_jax.core.activation import Stack
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Context,
  Message,
  Prediction,
  Received,
  Server,
  Start,
)
from fedms_jax.core.types import ActiveSet, Batch, Plan, Roles, Tree
from fedms_jax.server.averaged import averaged, mean_apart

_BLOCKS = 'blocks'
_TRAINED = ('masks', 'own', 'shares')


class Choice(NamedTuple):
  """tasks: T. pool: P, adapters that the server keeps. sparsity, pull: of the
  loss. withheld: the share of the outputs of a layer, those with the smallest
  |m|, that a client does not send. least: what of A is smaller is not sent."""

  tasks: int
  pool: int
  sparsity: float
  pull: float
  withheld: float
  least: float


def fedweit(setting: Setting, choice: Choice) -> Algorithm:
  """FedWeIT on LoRA. Personal is, of each task on a leading axis [T]: 'masks'
  m, 'own' A, 'shares' a, 'goal' W, 'mixed' sum_j a_j A_j, and 'met', 1 if the
  client has trained on it. What a client is served with is 'by_task', which is
  no one model, and is not exported."""
  plain = fedms.global_stage(setting)
  blocks = setting.backbone.blocks

  def begin(key, before: Roles) -> Roles:
    roles = plain.begin(key, before)
    return roles._replace(personal=_fresh(roles.shared[_BLOCKS], choice))

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    shared = joined.rest(roles.shared, blocks)

    def said(one):
      base = roles.shared[_BLOCKS]
      theta = tree.where(one['met'] > 0, _theta(base, one), base)
      whole = shared | {_BLOCKS: Stack(theta, None, (False,) * blocks)}
      return two_experts.logits(setting, roles.frozen, whole, batch, plan)

    # Of one task after another, for a row is of one of them.
    each = jax.lax.map(said, roles.personal)  # [T, B, C]
    task = _tasks(batch)
    own = jnp.take_along_axis(each, task[None, :, None], axis=0)[0]
    found = plain.predict(roles, batch, plan).logits
    return Prediction(found | {'by_task': own}, {})

  return plain._replace(
    name='fedweit',
    begin=begin,
    update=_update(setting, choice),
    predict=predict,
    server=_server(setting, choice),
    masks=_masks,
    served='by_task',
    traffic=_traffic(choice),
  )


def _fresh(base: Tree, choice: Choice) -> Tree:
  """What a client has before it has met any task."""
  count = choice.tasks

  def zeros(shape):
    return jnp.zeros((count, *shape))

  nothing = jax.tree.map(lambda x: zeros(x.shape), base)
  return {
    'masks': jax.tree.map(lambda x: zeros((len(x), x.shape[-1])), base),
    'own': nothing,
    'shares': zeros((choice.pool,)),
    'goal': jax.tree.map(jnp.copy, nothing),
    'mixed': jax.tree.map(jnp.copy, nothing),
    'met': zeros(()),
  }


def _kept(base: Tree, one: Tree) -> Tree:
  """B * sigmoid(m) + A of one task: what it keeps of its own, [L, ...]."""
  return jax.tree.map(
    lambda b, m, a: b * jax.nn.sigmoid(m)[:, None, :] + a,
    base,
    one['masks'],
    one['own'],
  )


def _theta(base: Tree, one: Tree) -> Tree:
  """theta of one task, [L, ...]."""
  return tree.add(_kept(base, one), one['mixed'])


def _tasks(batch: Batch):
  """The task of each row, int32 [B]; the first where there is one alone."""
  return batch.get(TASK, jnp.zeros_like(batch['labels']))


def _current(batch: Batch):
  """The task of the rows of a step, which all have the same."""
  return jnp.max(jnp.where(batch['mask'], _tasks(batch), 0))


def _masks(plan: Plan):
  fixed = dict.fromkeys(('goal', 'mixed', 'met'), False)
  return plan.active, dict.fromkeys(_TRAINED, True) | fixed


def _active(plan: Plan, like: Tree) -> Tree:
  """Which entries of trees [T, L, ...] are of active blocks."""
  held = jnp.asarray(plan.active)
  return jax.tree.map(
    lambda x: held.reshape((1, -1) + (1,) * (x.ndim - 2)), like
  )


def _training(personal: Tree, plan: Plan) -> Tree:
  """The personal tree, through whose active blocks alone gradients pass."""

  def held(here, x):
    return jnp.where(here, x, jax.lax.stop_gradient(x))

  names = ('masks', 'own')
  return personal | {
    name: jax.tree.map(held, _active(plan, personal[name]), personal[name])
    for name in names
  }


def _update(setting: Setting, choice: Choice) -> ClientUpdate:
  """Local training on the task of the rows that a client has."""

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    base = _base(roles.shared[_BLOCKS])
    mine = _training(roles.personal, start.plan)
    now = _current(batch)
    one = tree.rows(mine, now) | {'mixed': _mixed(roles, mine, now)}
    theta, active = _theta(base, one), start.plan.active
    part = tree.rows(theta, tree.indices(active))
    stack = Stack(jax.lax.stop_gradient(theta), part, active)
    whole = roles.shared | {_BLOCKS: stack}
    out = two_experts.logits(setting, roles.frozen, whole, batch, start.plan)
    total, sums = adapted.learned(setting.task, batch, out)
    size = sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(one['own']))
    apart = _apart(base, mine, now)
    return total + choice.sparsity * size + choice.pull / 2 * apart, sums

  inner = client.sgd(objective, setting.optimizer, _masks)

  def begin(start: Start):
    state = inner.begin(start)
    met = start.roles.personal['met']
    return {'model': state, 'met': met, 'now': jnp.int32(0)}

  def step(carry, start: Start, batch: Batch, key):
    now = _current(batch)
    model = _begun(carry, now, start)
    met = carry['met'].at[now].set(1.0)
    roles = start.roles
    seen = start.at(roles._replace(personal=roles.personal | {'met': met}))
    model, sums = inner.step(model, seen, batch, key)
    return {'model': model, 'met': met, 'now': now}, sums

  def finish(carry, start: Start):
    message, own = inner.finish(carry['model'], start)
    return _finished(choice, carry, start, message, own)

  return ClientUpdate(begin, step, finish)


def _base(stack: Stack) -> Tree:
  """B [L, ...] of which the active rows train."""
  rows = tree.indices(stack.active)
  if stack.part is None:
    return stack.full
  return jax.tree.map(lambda x, y: x.at[rows].set(y), stack.full, stack.part)


def _mixed(roles: Roles, personal: Tree, now) -> Tree:
  """sum_j a_j A_j of a task."""
  pool = roles.frozen['server']
  share = personal['shares'][now] * pool['held']
  return adapter_pool.combined(pool, share)[_BLOCKS]


def _apart(base: Tree, personal: Tree, now):
  """sum_(i != now) ||B * sigmoid(m_i) + A_i - W_i||^2 of tasks met."""
  others = personal['met'] * (jnp.arange(len(personal['met'])) != now)

  def one(mine):
    gap = tree.subtract(_kept(base, mine), mine['goal'])
    return tree.squared_norm(gap)

  return jnp.sum(others * jax.vmap(one)(personal))


def _begun(carry: Tree, now, start: Start) -> Tree:
  """The state in which A of a task that was not met before is B / 3."""
  new = carry['met'][now] < 0.5
  model = carry['model']
  personal = model['train']['personal']
  third = tree.scale(start.roles.shared[_BLOCKS], 1 / 3)
  own = jax.tree.map(
    lambda x, b: x.at[now].set(jnp.where(new, b, x[now])),
    personal['own'],
    third,
  )
  train = model['train'] | {'personal': personal | {'own': own}}
  return model | {'train': train}


def _finished(choice: Choice, carry, start: Start, message: Message, own: Tree):
  """What a client sends and keeps after a round."""
  now, plan, before = carry['now'], start.plan, start.roles
  base = tree.widen(before.shared, message.update, plan.active)[_BLOCKS]
  new = carry['met'] * (1 - before.personal['met']) > 0
  kept = own | {'met': carry['met']}
  for name in ('masks', 'own'):
    # An optimizer moves also what has no gradient; a new task is all new.
    kept[name] = jax.tree.map(
      lambda here, x, y: jnp.where(
        here | new.reshape((-1,) + (1,) * (x.ndim - 1)), x, y
      ),
      _active(plan, own[name]),
      own[name],
      before.personal[name],
    )
  one = tree.rows(kept, now)
  rows = {'goal': _kept(base, one), 'mixed': _mixed(before, kept, now)}
  for name, value in rows.items():
    kept[name] = jax.tree.map(lambda x, y: x.at[now].set(y), kept[name], value)
  sent = jax.tree.map(
    lambda x: jnp.where(jnp.abs(x) > choice.least, x, 0.0), one['own']
  )
  rows = tree.indices(plan.active)
  cover = jax.tree.map(
    lambda m, x: _sent(m, choice.withheld, rows, x),
    one['masks'],
    message.update[_BLOCKS],
  )
  covers = {key: jnp.float32(1) for key in message.update} | {_BLOCKS: cover}
  return message._replace(extras={'tasks': {'own': sent}}, cover=covers), kept


def _sent(masks, withheld: float, rows: np.ndarray, like):
  """Which entries [d, ...] a client sends, by |m| of its outputs [L, D]."""
  size = jnp.abs(masks[rows])
  least = jnp.quantile(size, withheld, axis=-1, keepdims=True)
  held = (size >= least).astype(jnp.float32)
  return jnp.broadcast_to(held[:, None, :], like.shape)


def _server(setting: Setting, choice: Choice) -> Server:
  """The mean of B over who sent it, and the pool of tasks' own parts.

  Its memory has beside the pool that clients see the one that is filled in this
  task, and the step of the sequence that it is of.
  """
  inner = averaged(mean_apart(), setting.outer)

  def init(key, roles: Roles) -> Tree:
    one = {_BLOCKS: roles.shared[_BLOCKS]}
    pools = {n: adapter_pool.empty(choice.pool, one) for n in ('seen', 'next')}
    return {'model': inner.init(key, roles), 'step': jnp.int32(0)} | pools

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    weight = received.cover['head']
    roles, model, measured = inner.step(
      roles, memory['model'], received, context
    )
    now = jnp.int32(roles.frozen[KEY]['step'] if KEY in roles.frozen else 0)
    later = now != memory['step']
    empty = adapter_pool.empty(choice.pool, {_BLOCKS: roles.shared[_BLOCKS]})
    filled = tree.where(later, empty, memory['next'])
    made = {_BLOCKS: received.extras['tasks']['own']}
    new = {
      'step': now,
      'seen': tree.where(later, memory['next'], memory['seen']),
      'next': adapter_pool.renewed(filled, made, weight > 0),
    }
    there = jnp.any(weight > 0)
    kept = {name: tree.where(there, x, memory[name]) for name, x in new.items()}
    return roles, {'model': model} | kept, measured

  return inner._replace(
    init=init, step=step, broadcast=lambda memory: memory['seen']
  )


def _traffic(choice: Choice):
  """Bytes of a client: B and A up, of which zeros count, too; B and the pool
  down, of blocks that have ever been active."""

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    del cohort
    up = tree.nbytes_of(shapes.shared, plan.active)
    own = tree.nbytes_of({_BLOCKS: shapes.shared[_BLOCKS]}, plan.active)
    one = tree.nbytes_of({_BLOCKS: shapes.shared[_BLOCKS]}, ever)
    down = tree.nbytes_of(shapes.shared, ever)
    return float(up + own), float(down + choice.pool * one)

  return traffic
