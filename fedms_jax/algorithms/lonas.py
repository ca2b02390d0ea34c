"""LoNAS (LREC-COLING 2024): one LoRA that holds smaller ones, and the search
for one of them; in a federated form.

A configuration gives every target of every block a rank out of a set; its LoRA
is the first columns of A and rows of B. In the first stage clients train the
whole LoRA so that all of its parts are of use: each step's loss is the mean
over its largest, its smallest and a random configuration (the sandwich of
slimmable networks). A client of less rank (`ranks.py`) has its largest cut to
that, and a column is averaged over those who had it. In the second stage
nothing trains: clients say how often each of a number of configurations is
right on rows that they do not train on, and the server takes the smallest that
is hardly worse than the best.

The paper is not federated, and elastic in the base's widths as well. Ours are
the federated form, the search at the clients in place of a data set of the
server's, and the rule by which one is taken.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora
from fedms_jax.algorithms import adapted, fedms, ranks
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.ranks import RankOf
from fedms_jax.core import client, joined, tree
from fedms_jax.core.activation import Stack
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Context,
  Message,
  Prediction,
  Received,
  Sender,
  Server,
  Start,
)
from fedms_jax.core.types import ActiveSet, Batch, Passes, Plan, Roles, Tree
from fedms_jax.models.tasks import weighted_mean


class Search(NamedTuple):
  """candidates: configurations that are tried, at least 2: the largest, the
  smallest, and random ones. tolerance: how much worse than the best one, as a
  share of the rows, the smallest may be that is taken."""

  candidates: int
  tolerance: float


def super_stage(
  setting: Setting, elastic: tuple[int, ...], *, rank_of: RankOf | None = None
) -> Algorithm:
  """The LoRA that holds the others; elastic: the ranks that there are."""
  most = setting.lora.rank
  plain = fedms.global_stage(setting)
  inner = _sandwich(setting, elastic)
  made = plain._replace(
    name='lonas/super',
    update=_covering(ranks.truncated(inner, most), most),
    server=adapted.server(setting),
    passes=Passes(trained=3),
    traffic=_traffic(most),
  )
  if rank_of is None:
    return made
  return made._replace(variant=ranks.variant(rank_of))


def search_stage(
  setting: Setting, elastic: tuple[int, ...], search: Search
) -> Algorithm:
  """The choice of a configuration. Shared is 'ranks', float32 [targets, L], of
  the one that is taken; users get it as 'global'. 'whole' is the LoRA that all
  are part of. elastic: ascending."""
  blocks = setting.backbone.blocks

  def begin(key, before: Roles) -> Roles:
    del key
    frozen = before.frozen | {'global': before.shared}
    shape = len(setting.lora.targets), blocks
    whole = jnp.full(shape, float(elastic[-1]))
    return Roles(frozen, {'ranks': whole}, {})

  def model(roles: Roles) -> Tree:
    whole = joined.rest(roles.frozen['global'], blocks)
    found = narrowed(setting.lora, whole['blocks'], roles.shared['ranks'])
    return {'blocks': found, 'head': whole['head']}

  plain = adapted.one_model(
    setting,
    'lonas/search',
    begin,
    model,
    server=_choosing(setting, elastic, search),
  )

  def columns(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    return plain.columns(roles, batch, plan._replace(boundary=0))

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    plan = plan._replace(boundary=0)
    whole = joined.rest(roles.frozen['global'], blocks)
    logits = plain.predict(roles, batch, plan).logits
    logits |= {'whole': _logits(setting, roles.frozen, whole, batch)}
    return Prediction(logits, {})

  return plain._replace(
    columns=columns,
    deeper=None,
    predict=predict,
    update=_trying(setting, search),
    passes=Passes(trained=0, again=search.candidates + 1),
  )


def narrowed(spec: lora.Spec, stack: Stack, found) -> Stack:
  """The LoRA of a configuration, ranks [targets, L]: rows of B from the rank
  on are zeros, which is as if A had no such columns."""

  def cut(factors: Tree, rows) -> Tree:
    out = {}
    for target, (a, b) in lora.pairs(factors).items():
      most = found[spec.targets.index(target)][rows]
      held = jnp.arange(b.shape[-2])[None] < most[:, None]
      out[target] = a, jnp.where(held[..., None], b, 0.0)
    return lora.from_pairs(out)

  part = stack.part
  if part is not None:
    part = cut(part, tree.indices(stack.active))
  return stack._replace(full=cut(stack.full, slice(None)), part=part)


def drawn(key, elastic: tuple[int, ...], shape) -> jax.Array:
  """A random configuration, float32 of this shape."""
  number = jax.random.randint(key, shape, 0, len(elastic))
  return jnp.asarray(elastic, jnp.float32)[number]


def _sandwich(setting: Setting, elastic: tuple[int, ...]) -> ClientUpdate:
  """Steps on the mean loss of three configurations, up to the client's rank."""
  task, spec = setting.task, setting.lora
  shape = len(spec.targets), setting.backbone.blocks

  def objective(roles: Roles, batch: Batch, key, start: Start):
    most = start.plan.variant or spec.rank
    allowed = tuple(r for r in elastic if r < most) + (most,)
    least = jnp.full(shape, float(allowed[0]))
    whole, total, sums = roles.shared, 0.0, {}
    for found in (None, least, drawn(key, allowed, shape)):
      blocks = whole['blocks']
      if found is not None:
        blocks = narrowed(spec, blocks, found)
      x = adapted.features(
        setting.backbone, roles.frozen['base'], [blocks], batch['prefix'],
        batch, start.plan.boundary,
      )  # fmt: skip
      out = setting.backbone.logits(roles.frozen['base'], whole['head'], x)
      loss = task.loss(out, batch)
      total += weighted_mean(*loss) / 3
      sums = sums or adapted.sums(task, out, loss, batch)
    return total, sums

  return client.sgd(objective, setting.optimizer, client.everywhere)


def _covering(update: ClientUpdate, most: int) -> ClientUpdate:
  """Says of each column whether the client had it."""

  def finish(carry, start: Start):
    message, personal = update.finish(carry, start)
    rank, count = start.plan.variant or most, sum(start.plan.active)
    held = jnp.broadcast_to(jnp.arange(most) < rank, (count, most))
    held = held.astype(jnp.float32)
    pairs = lora.pairs(message.update['blocks'])
    cover = lora.from_pairs({t: (held[:, None], held) for t in pairs})
    cover = {'blocks': cover, 'head': jnp.float32(1)}
    return message._replace(extras={}, cover=cover), personal

  return update._replace(finish=finish)


def _traffic(most: int):
  """Bytes of a client: LoRA of its own rank and the head, both ways."""

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    del cohort
    each = tree.nbytes(shapes.shared['blocks']) / len(plan.active)
    each *= (plan.variant or most) / most
    head = float(tree.nbytes(shapes.shared['head']))
    return head + each * sum(plan.active), head + each * sum(ever)

  return traffic


def _logits(setting: Setting, frozen: Tree, whole: Tree, batch: Batch):
  x = adapted.features(
    setting.backbone, frozen['base'], [whole['blocks']], batch['prefix'],
    batch, 0,
  )  # fmt: skip
  return setting.backbone.logits(frozen['base'], whole['head'], x)


def _trying(setting: Setting, search: Search) -> ClientUpdate:
  """How often each candidate is right, over all rows that the client meets."""
  task, blocks = setting.task, setting.backbone.blocks

  def begin(start: Start):
    del start
    return {'right': jnp.zeros(search.candidates), 'count': jnp.float32(0)}

  def step(carry, start: Start, batch: Batch, key):
    del key
    frozen = start.roles.frozen
    whole = joined.rest(frozen['global'], blocks)

    def tried(found):
      stack = narrowed(setting.lora, whole['blocks'], found)
      out = _logits(setting, frozen, whole | {'blocks': stack}, batch)
      values, weights = task.score(out, batch)
      return jnp.sum(values * weights), jnp.sum(weights)

    right, count = jax.lax.map(tried, frozen['server'])
    new = {'right': carry['right'] + right, 'count': carry['count'] + count[0]}
    out = _logits(setting, frozen, whole, batch)
    return new, adapted.sums(task, out, task.loss(out, batch), batch)

  def finish(carry, start: Start):
    update = {'ranks': start.roles.shared['ranks']}
    return Message(update, {'found': carry}), start.roles.personal

  return ClientUpdate(begin, step, finish)


def _choosing(
  setting: Setting, elastic: tuple[int, ...], search: Search
) -> Server:
  """Adds up what candidates got right, and takes one."""
  shape = len(setting.lora.targets), setting.backbone.blocks

  def init(key, roles: Roles) -> Tree:
    del roles
    more = drawn(key, elastic, (search.candidates - 2, *shape))
    ends = jnp.asarray([elastic[-1], elastic[0]], jnp.float32)
    ends = jnp.broadcast_to(ends[:, None, None], (2, *shape))
    none = {'right': jnp.zeros(search.candidates), 'count': jnp.float32(0)}
    return none | {'candidates': jnp.concatenate([ends, more])}

  def send(before, message: Message, weight, sender: Sender) -> Message:
    del before, sender
    some = jnp.float32(weight > 0)  # rows are counted in what is sent
    return Message(*tree.scale(tuple(message), some))

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    del context
    found = received.extras['found']
    right = memory['right'] + found['right']
    count = memory['count'] + found['count']
    chosen = smallest(setting, memory['candidates'], right, count, search)
    now = jnp.where(
      found['count'] > 0, memory['candidates'][chosen], roles.shared['ranks']
    )
    memory = memory | {'right': right, 'count': count}
    measured = {'mean_rank': jnp.mean(now)}
    return roles._replace(shared={'ranks': now}), memory, measured

  return Server(init, send, 'sum', step, lambda memory: memory['candidates'])


def smallest(setting: Setting, candidates, right, count, search: Search):
  """The number of the candidate with the fewest parameters of those that are
  right at most `tolerance` less often than the best.

  candidates: ranks [n, targets, L]. right: [n], out of `count`.
  """
  share = right / jnp.maximum(count, 1.0)
  good = share >= jnp.max(share) - search.tolerance - 1e-6
  base = setting.backbone
  shapes = jax.eval_shape(base.init, jax.random.key(0))['blocks']
  kernels = lora.kernels(shapes)
  each = jnp.asarray([sum(kernels[t][1:]) for t in setting.lora.targets])
  size = jnp.sum(candidates * each[None, :, None], axis=(1, 2))
  return jnp.argmin(jnp.where(good, size, jnp.inf))
