"""FeMAM (arXiv 2405.16472): a client's model is a sum of models by levels.

Level 0 is one model of all clients, the last level one of each client, and the
levels between have a model for each of a few clusters of clients. A client's
logits are the sum over the levels that it keeps. Only the newest level trains,
on the loss of the sum, with `pull` ||theta - theta_t||^2 beside it, theta_t
being what the round began with. When the last `queue` mean losses of what
clients have, measured on a client's first batch before it trains on it, are
flat (their range is below `eps` times their mean), the next level begins.

  clusters: k-means, when a level begins, of the newest directions in which
    clients moved the last active layers, which here are the head and the last
    block's LoRA; a client belongs to the nearest center from then on.
  pruning: a client that meets a new level drops the one before it if without
    it the loss of its first batch is lower.

Ours: a model is LoRA and head, and that of a new level starts with a head of
zeros, so that the sum stays what it was; what is measured is measured on
training rows, for clients hold no others in a round; clients that were not
there for a level do without it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import adapted, fedms, general, two_experts
from fedms_jax.algorithms import levels as by_level
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.levels import Choice, Levels
from fedms_jax.core import client, metrics, tree
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Message,
  Prediction,
  Start,
)
from fedms_jax.core.types import ActiveSet, Batch, Passes, Plan, Roles, Tree
from fedms_jax.models.tasks import weighted_mean


def femam(
  setting: Setting, choice: Choice, *, adapter: Tree | None = None
) -> Algorithm:
  """FeMAM. Predicts 'global', level 0, and 'local', the client's sum, which is
  exported as its 'levels' [M, ...] and which of them are 'kept' [M]."""
  plain = fedms.global_stage(setting, adapter=adapter)
  levels = Levels(setting, choice)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    kept = roles.personal['kept'] > 0.5
    each = [
      levels.logits(roles, model, batch, plan) for model in levels.each(roles)
    ]
    total = sum(jnp.where(k, x, 0.0) for k, x in zip(kept, each, strict=True))
    whole = {key: roles.shared[key] for key in ('blocks', 'head')}
    first = plain.predict(roles._replace(shared=whole), batch, plan).logits
    count = jnp.full(batch['mask'].shape, jnp.sum(kept), jnp.float32)
    return Prediction(first | {'local': total}, {'levels_kept': count})

  def models(roles: Roles) -> dict[str, Tree]:
    each = levels.each(roles)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
    kept = jnp.asarray(roles.personal['kept'] > 0.5, jnp.float32)
    return {'global': each[0], 'local': {'levels': stacked, 'kept': kept}}

  return plain._replace(
    name='femam',
    begin=_begin(plain, levels),
    update=_newest_level(levels),
    predict=predict,
    server=by_level.server(levels),
    masks=_masks,
    served='local',
    passes=Passes(trained=1, frozen=choice.levels - 1),
    models=models,
    traffic=_traffic(choice),
  )


def _begin(plain: Algorithm, levels: Levels):
  """Level 0 is that of `plain`; the others say nothing yet."""
  choice = levels.choice

  def begin(key, before: Roles) -> Roles:
    roles = plain.begin(key, before)
    zeros = jax.tree.map(jnp.zeros_like, roles.shared['head'])
    none = roles.shared | {'head': zeros}
    shape, middle = (choice.levels - 2, choice.clusters), {}
    if choice.levels > 2:
      middle['middle'] = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), none
      )
    own = {
      'kept': jnp.zeros(choice.levels).at[0].set(1.0),
      'seen': jnp.float32(0),
      'cluster': jnp.zeros(shape[0]),
      'assigned': jnp.zeros(shape[0]),
      'moved': jnp.zeros_like(levels.direction(none, none)),
    }
    return Roles(roles.frozen, roles.shared | middle, none | own)

  return begin


def _traffic(choice: Choice):
  """Bytes of a client: the newest level both ways, the direction up, the
  centers down."""

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    del cohort
    one = {key: shapes.shared[key] for key in ('blocks', 'head')}
    vector = tree.nbytes(shapes.personal['moved'])
    up = tree.nbytes_of(one, plan.active) + vector
    down = tree.nbytes_of(one, ever) + choice.clusters * vector
    return float(up), float(down)

  return traffic


def _masks(plan: Plan):
  own = ('blocks', 'head', 'kept', 'seen', 'cluster', 'assigned', 'moved')
  return plan.active, dict.fromkeys(own, False)


def _newest_level(levels: Levels) -> ClientUpdate:
  """Trains the newest level, and decides on the one before it."""
  setting, choice, task = levels.setting, levels.choice, levels.setting.task
  optimizer = optax.chain(general.proximal(2 * choice.pull), setting.optimizer)

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    out = batch['others'] + two_experts.logits(
      setting, roles.frozen, roles.shared, batch, start.plan
    )
    loss = task.loss(out, batch)
    return weighted_mean(*loss), adapted.sums(task, out, loss, batch)

  inner = client.sgd(objective, optimizer, client.everywhere)

  def alone(start: Start) -> Start:
    theta = levels.newest(start.roles)
    return start.at(start.roles._replace(shared=theta, personal={}))

  def begin(start: Start):
    kept = start.roles.personal['kept']
    model = inner.begin(alone(start))
    return {'model': model, 'kept': kept, 'loss': jnp.zeros(2)}

  def step(carry, start: Start, batch: Batch, key):
    roles, level = start.roles, start.roles.frozen['server']['level']
    each = [
      levels.logits(roles, model, batch, start.plan)
      for model in levels.each(roles)
    ]
    kept, loss = _looked_at(levels, roles, carry['kept'], each, batch)
    first = start.moment.step == 0
    kept = jnp.where(first, kept, carry['kept'])
    loss = jnp.where(first, loss, carry['loss'])
    below = kept * (jnp.arange(choice.levels) < level)
    others = sum(k * x for k, x in zip(below, each, strict=True))
    batch = batch | {'others': jax.lax.stop_gradient(others)}
    model, sums = inner.step(carry['model'], alone(start), batch, key)
    return {'model': model, 'kept': kept, 'loss': loss}, sums

  def finish(carry, start: Start):
    return _finished(levels, inner, alone(start), carry, start)

  return ClientUpdate(begin, step, finish, inner.sums)


def _looked_at(levels: Levels, roles: Roles, kept, each, batch: Batch):
  """(kept, loss float32 [2]) before a client trains on its first batch.

  each: logits of the levels. A client that meets a new level drops the one that
  it met last, if its other older levels do no worse without it.
  """
  task, number = levels.setting.task, jnp.arange(levels.choice.levels)
  level = roles.frozen['server']['level']
  last = jnp.round(roles.personal['seen']).astype(jnp.int32)

  def loss(held):
    out = sum(h * x for h, x in zip(held, each, strict=True))
    return task.loss(out, batch)

  below = kept * (number < level)
  without = below * (number != last)
  worse = weighted_mean(*loss(below)) >= weighted_mean(*loss(without))
  drop = (level > last) & (last > 0) & worse
  kept = jnp.where(drop, kept * (number != last), kept)
  now = kept * (number < level) + (number == level)
  return kept, metrics.summed(*loss(now))


def _finished(levels: Levels, inner, now: Start, carry: Tree, start: Start):
  """(message, personal): what was trained, at the place of its level."""
  choice, roles = levels.choice, start.roles
  level, own = roles.frozen['server']['level'], roles.personal
  message, _ = inner.finish(carry['model'], now)
  before = now.roles.shared
  theta = tree.widen(before, message.update, start.plan.active)
  held = jnp.float32(level == 0)
  update = dict(message.update)
  cover = {
    'blocks': held * jnp.ones(sum(start.plan.active)),
    'head': held,
  }
  number = jnp.arange(choice.levels - 2)
  here = (number + 1 == level).astype(jnp.float32)
  cluster = own['cluster']
  if choice.levels > 2:
    mine = jnp.stack(
      [levels.cluster(roles, n) for n in range(choice.levels - 2)]
    )
    cover['middle'] = here[:, None] * jax.nn.one_hot(mine, choice.clusters)
    update['middle'] = jax.tree.map(
      lambda x, y: jnp.broadcast_to(x, y.shape), theta, roles.shared['middle']
    )
    cluster = jnp.where(here > 0, mine.astype(jnp.float32), cluster)
  moved = levels.direction(before, theta)
  last = tree.where(
    level == choice.levels - 1, theta, {key: own[key] for key in theta}
  )
  kept = jnp.where(jnp.arange(choice.levels) == level, 1.0, carry['kept'])
  personal = last | {
    'kept': kept,
    'seen': level.astype(jnp.float32),
    'cluster': cluster,
    'assigned': jnp.maximum(own['assigned'], here),
    'moved': moved,
  }
  extras = {'seen': {'moved': moved, 'loss': carry['loss']}}
  return Message(update, extras, cover), personal
