"""FedCAF (Peng et al., IEEE CAI 2024, "Learning Task-Specific Initialization
for Effective Federated Continual Fine-Tuning") and FedKEI, its successor (arXiv
2508.10299): a task starts from a mixture of all past adapters.

The server keeps the newest adapters that clients made, theta_p, see
`adapter_pool.py`. A client's participation in a round, on the rows that it has
then, is a task. In the first part of its local steps the client learns how
much each of them counts, and in the rest it tunes theta from that start:

  FedCAF: theta = sum_p a_p theta_p,  a = softmax(v), v learned by the client;
  FedKEI: theta = sum_c alpha_c sum_{p in c} beta_{c,p} theta_p, with clusters c
  of k-means, alpha learned by the client on one half of a batch, and beta,
  which is averaged by the server, on the other.

Ours, where the papers' texts could not be read: theta is LoRA with its head; v
and alpha begin at zero in each task and follow Adam; alpha is a constant in the
step on beta; k-means is of directions; with an empty pool a client tunes the
mean of what clients sent, which is 'global'; a client that never trained has
the mixture with alpha, or a, even.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import adapted, adapter_pool, fedms, two_experts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, joined, tree
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Context,
  Prediction,
  Received,
  Server,
  Start,
)
from fedms_jax.core.shapes import tail
from fedms_jax.core.types import ActiveSet, Batch, Passes, Plan, Roles, Tree
from fedms_jax.models.tasks import weighted_mean
from fedms_jax.server.averaged import averaged, mean_apart

_MINE = ('blocks', 'head')


class Choice(NamedTuple):
  """pool: adapters that the server keeps. share: of the local steps, the first
  ones, that learn what counts; at least one does. rate: their learning rate.
  clusters: of the pool; 0: each adapter is one, and nothing but v is learned
  (FedCAF)."""

  pool: int
  share: float
  rate: float
  clusters: int = 0

  @property
  def groups(self) -> int:
    """C, numbers that a client learns."""
    return self.clusters or self.pool


class Mixture(NamedTuple):
  """How a client mixes the adapters of a pool."""

  setting: Setting
  choice: Choice

  def of(self, roles: Roles, outer, inner) -> Tree:
    """theta: {'blocks', 'head'}; the shared one if the pool is empty."""
    pool, shared = roles.frozen['server'], roles.shared
    share = adapter_pool.weights(pool, outer, inner)
    mixed = adapter_pool.combined(pool, share)
    return tree.where(jnp.any(pool['held'] > 0), mixed, shared)

  def loss(self, start: Start, outer, inner, batch: Batch, rows):
    """(loss on some `rows` [B] of a batch, metrics of all of it)."""
    roles, task = start.roles, self.setting.task
    whole = joined.rest(
      self.of(roles, outer, inner), self.setting.backbone.blocks
    )
    logits = two_experts.logits(
      self.setting, roles.frozen, whole, batch, start.plan
    )
    some = batch | {'mask': batch['mask'] & rows}
    loss = task.loss(logits, batch)
    sums = adapted.sums(task, logits, loss, batch)
    return weighted_mean(*task.loss(logits, some)), sums

  def learned(self, mix: Tree, start: Start, batch: Batch):
    """(mix after a step, metrics). mix: {'outer', 'inner', 'states'}."""
    optimizer = optax.adam(self.choice.rate)
    even = jnp.arange(len(batch['mask'])) % 2 == 0
    first = even if self.choice.clusters else jnp.ones_like(even)
    outer, inner, states = mix['outer'], mix['inner'], mix['states']

    def moved(x, slope, state):
      step, state = optimizer.update(slope, state, x)
      return optax.apply_updates(x, step), state

    slope, sums = jax.grad(
      lambda x: self.loss(start, x, inner, batch, first), has_aux=True
    )(outer)
    outer, one = moved(outer, slope, states['outer'])
    two = states['inner']
    if self.choice.clusters:
      slope, _ = jax.grad(
        lambda x: self.loss(start, outer, x, batch, ~even), has_aux=True
      )(inner)
      inner, two = moved(inner, slope, two)
    states = {'outer': one, 'inner': two}
    return {'outer': outer, 'inner': inner, 'states': states}, sums

  def begin(self, start: Start) -> Tree:
    """A client's mix before its first step."""
    init = optax.adam(self.choice.rate).init
    outer = jnp.zeros(self.choice.groups)
    inner = start.roles.frozen['server']['logits']
    states = {'outer': init(outer), 'inner': init(inner)}
    return {'outer': outer, 'inner': inner, 'states': states}


def attentive(
  setting: Setting,
  name: str,
  choice: Choice,
  *,
  adapter: Tree | None = None,
) -> Algorithm:
  """FedCAF, or with clusters FedKEI. adapter: see `adapted.fresh`.

  Shared is the mean of what clients made. Personal is what a client made last,
  and 'trained', 1 if it ever did.
  """
  plain = fedms.global_stage(setting, adapter=adapter)
  mixture = Mixture(setting, choice)

  def begin(key, before: Roles) -> Roles:
    roles = plain.begin(key, before)
    own = roles.shared | {'trained': jnp.float32(0)}
    return roles._replace(personal=own)

  def local(roles: Roles) -> Tree:
    own, pool = roles.personal, roles.frozen['server']
    fresh = mixture.of(roles, jnp.zeros(choice.groups), pool['logits'])
    mine = {key: own[key] for key in _MINE}
    return tree.where(own['trained'] > 0.5, mine, fresh)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    whole = joined.rest(local(roles), setting.backbone.blocks)
    logits = two_experts.logits(setting, roles.frozen, whole, batch, plan)
    found = plain.predict(roles, batch, plan).logits
    return Prediction(found | {'local': logits}, {})

  return plain._replace(
    name=name,
    begin=begin,
    update=_attending(mixture),
    predict=predict,
    server=_server(setting, choice),
    masks=_masks,
    served='local',
    passes=Passes(trained=1, beside=_mixing(choice)),
    models=lambda roles: plain.models(roles) | {'local': local(roles)},
    traffic=_traffic(choice),
  )


def _traffic(choice: Choice):
  """Bytes of a client: what it made goes up; once the pool is full, all of it
  comes down, of blocks that have ever been active."""

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    del cohort
    up = tree.nbytes_of(shapes.shared, plan.active)
    one = tree.nbytes_of(shapes.shared, ever)
    numbers = 4 * choice.pool if choice.clusters else 0
    return float(up + numbers), float(choice.pool * one + 2 * numbers)

  return traffic


def _mixing(choice: Choice):
  """FLOPs of the products with the pool: forward, and backward too in a step
  that learns."""

  def mixing(shapes: Roles) -> tuple[float, float]:
    one = 2.0 * choice.pool * tree.size(shapes.shared)
    return (1 + 2 * choice.share) * one, 0.0

  return mixing


def _masks(plan: Plan):
  return plan.active, dict.fromkeys((*_MINE, 'trained'), False)


def _attending(mixture: Mixture) -> ClientUpdate:
  """Learns what counts in the first steps, and tunes the mixture after."""
  setting, share = mixture.setting, mixture.choice.share
  plain = fedms.global_stage(setting)

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    out = two_experts.logits(
      setting, roles.frozen, roles.shared, batch, start.plan
    )
    loss = setting.task.loss(out, batch)
    sums = adapted.sums(setting.task, out, loss, batch)
    return weighted_mean(*loss), sums

  inner = client.sgd(objective, setting.optimizer, _masks)

  def mixed(start: Start, mix: Tree) -> Start:
    theta = mixture.of(start.roles, mix['outer'], mix['inner'])
    return start.at(start.roles._replace(shared=theta))

  def begin(start: Start):
    mix = mixture.begin(start)
    return {'mix': mix, 'model': inner.begin(mixed(start, mix))}

  def step(carry, start: Start, batch: Batch, key):
    def attend():
      mix, sums = mixture.learned(carry['mix'], start, batch)
      return {'mix': mix, 'model': inner.begin(mixed(start, mix))}, sums

    def tune():
      now = mixed(start, carry['mix'])
      model, sums = inner.step(carry['model'], now, batch, key)
      return carry | {'model': model}, sums

    some = jnp.any(start.roles.frozen['server']['held'] > 0)
    first = some & (client.progress(start.moment) < share)
    return jax.lax.cond(first, attend, tune)

  def finish(carry, start: Start):
    now = mixed(start, carry['mix'])
    message, _ = inner.finish(carry['model'], now)
    made = tree.widen(now.roles.shared, message.update, start.plan.active)
    extras = {'mix': {'logits': carry['mix']['inner']}}
    return message._replace(extras=extras), made | {'trained': jnp.float32(1)}

  return ClientUpdate(begin, step, finish, plain.update.sums)


def _server(setting: Setting, choice: Choice) -> Server:
  """The weighted mean of adapters that stay apart, and the pool of them."""

  inner = averaged(mean_apart(), setting.outer)

  def init(key, roles: Roles) -> Tree:
    pool = adapter_pool.empty(choice.pool, roles.shared)
    return {'model': inner.init(key, roles), 'pool': pool}

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    before, pool = roles.shared, memory['pool']
    roles, model, measured = inner.step(
      roles, memory['model'], received, context
    )
    weight = received.cover['head']
    if choice.clusters:
      sums = weight @ received.extras['mix']['logits']
      mean = sums / jnp.maximum(jnp.sum(weight), 1e-12)
      pool = pool | {'logits': mean}
    found = adapter_pool.renewed(pool, _whole(before, received), weight > 0)
    if choice.clusters:
      found = adapter_pool.grouped(found, choice.clusters)
    found = tree.where(jnp.any(weight > 0), found, memory['pool'])
    return roles, {'model': model, 'pool': found}, measured

  return inner._replace(
    init=init, step=step, broadcast=lambda memory: memory['pool']
  )


def _whole(before: Tree, received: Received) -> Tree:
  """What clients made [K, ...], with the shared blocks where theirs did not
  train."""

  def filled(key):
    if not tree.is_stacked(key):
      return received.update[key]
    held = received.cover[key] > 0
    return jax.tree.map(
      lambda x, old: jnp.where(tail(held, x), x, old[None]),
      received.update[key],
      before[key],
    )

  return {key: filled(key) for key in before}
