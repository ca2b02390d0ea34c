"""Models by levels, of which a client's is the sum: where they are kept, and
when the server begins a level. See `femam.py`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import adapter_pool, two_experts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import joined, tree
from fedms_jax.core.contract import (
  Context,
  Message,
  Received,
  Sender,
  Server,
)
from fedms_jax.core.types import Batch, Plan, Roles, Tree
from fedms_jax.server.averaged import averaged, mean_apart


class Choice(NamedTuple):
  """levels: M, at least 2. clusters: C, of each level between the first and
  the last. pool: directions that the server keeps. queue, eps, pull: see
  above."""

  levels: int
  clusters: int
  pool: int
  queue: int
  eps: float
  pull: float


class Levels(NamedTuple):
  """The models of a client. Shared are level 0 as 'blocks' and 'head', and
  'middle' [M - 2, C, ...]; personal the last level as 'blocks' and 'head'."""

  setting: Setting
  choice: Choice

  def cluster(self, roles: Roles, number: int):
    """The cluster of a client in the level 1 + `number`, int32: as it was
    chosen, else the one with the nearest center."""
    own, seen = roles.personal, roles.frozen['server']
    away = jnp.sum(jnp.square(seen['centers'] - own['moved'][None, :]), axis=1)
    chosen = jnp.round(own['cluster'][number]).astype(jnp.int32)
    chosen = jnp.clip(chosen, 0, self.choice.clusters - 1)
    nearest = jnp.argmin(away).astype(jnp.int32)
    return jnp.where(own['assigned'][number] > 0.5, chosen, nearest)

  def each(self, roles: Roles) -> list[Tree]:
    """The models of all levels, {'blocks', 'head'} each."""
    keys = ('blocks', 'head')
    found = [{key: roles.shared[key] for key in keys}]
    for number in range(self.choice.levels - 2):
      at = self.cluster(roles, number)
      some = tree.rows(roles.shared['middle'], number)
      found.append(tree.rows(some, at))
    return [*found, {key: roles.personal[key] for key in keys}]

  def newest(self, roles: Roles) -> Tree:
    """The model of the level that trains."""
    level, found = roles.frozen['server']['level'], self.each(roles)
    out = found[0]
    for number, model in enumerate(found[1:], 1):
      out = tree.where(level == number, model, out)
    return out

  def logits(self, roles: Roles, model: Tree, batch: Batch, plan: Plan):
    """Logits of the model of one level."""
    whole = joined.rest(model, self.setting.backbone.blocks)
    return two_experts.logits(self.setting, roles.frozen, whole, batch, plan)

  def direction(self, before: Tree, after: Tree):
    """Where a client moved the head and the last block, of length 1, [V]."""

    def last(model: Tree) -> Tree:
      blocks = jax.tree.map(lambda x: x[-1], model['blocks'])
      return {'blocks': blocks, 'head': model['head']}

    moved = jax.tree.leaves(tree.subtract(last(after), last(before)))
    flat = jnp.concatenate([x.reshape(-1) for x in moved])
    return flat / jnp.maximum(jnp.linalg.norm(flat), 1e-12)


def server(levels: Levels) -> Server:
  """The mean of each model over those who train it, and when levels begin."""
  choice = levels.choice
  inner = averaged(mean_apart(), levels.setting.outer)

  def init(key, roles: Roles) -> Tree:
    moved = roles.personal['moved']
    return {
      'model': inner.init(key, roles),
      'pool': adapter_pool.empty(choice.pool, {'moved': moved}),
      'queue': jnp.full(choice.queue, jnp.inf),
      'seen': {
        'level': jnp.int32(0),
        'centers': jnp.zeros((choice.clusters, *moved.shape)),
      },
    }

  def send(before, message: Message, weight, sender: Sender) -> Message:
    found = inner.send(before, message, weight, sender)
    seen = found.extras['seen'] | {'weight': jnp.float32(weight)}
    return found._replace(extras={'seen': seen})

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    roles, model, measured = inner.step(
      roles, memory['model'], received, context
    )
    seen = received.extras['seen']
    came = seen['weight'] > 0
    some = jnp.any(came)
    pool = adapter_pool.renewed(memory['pool'], {'moved': seen['moved']}, came)
    total = jnp.sum(jnp.where(came[:, None], seen['loss'], 0.0), axis=0)
    loss = total[0] / jnp.maximum(total[1], 1.0)
    queue = jnp.concatenate([memory['queue'][1:], loss[None]])
    new = _next_level(choice, memory['seen'], queue, pool)
    memory = {
      'model': model,
      'pool': tree.where(some, pool, memory['pool']),
      'queue': jnp.where(some, new['queue'], memory['queue']),
      'seen': tree.where(some, new['seen'], memory['seen']),
    }
    level = memory['seen']['level'].astype(jnp.float32)
    return roles, memory, measured | {'level': level}

  return inner._replace(
    init=init, send=send, step=step, broadcast=lambda memory: memory['seen']
  )


def _next_level(choice: Choice, seen: Tree, queue, pool: Tree) -> Tree:
  """{'queue', 'seen'}: with the next level begun if the queue is flat."""
  full = jnp.all(jnp.isfinite(queue))
  safe = jnp.where(full, queue, 0.0)
  flat = jnp.max(safe) - jnp.min(safe) < choice.eps * jnp.mean(safe)
  more = full & flat & (seen['level'] < choice.levels - 1)
  _, centers = adapter_pool.k_means(
    pool['adapters']['moved'], pool['held'] > 0, choice.clusters
  )
  return {
    'queue': jnp.where(more, jnp.inf, queue),
    'seen': {
      'level': seen['level'] + more.astype(jnp.int32),
      'centers': jnp.where(more, centers, seen['centers']),
    },
  }
