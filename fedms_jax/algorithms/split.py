"""FedV and FedVZ (arXiv 2403.16050): federated split learning.

A client has the stem, the first blocks, the last blocks and the head; the
server has the blocks between, the body. In each step of a client four messages
pass: what enters the body, what comes out of it, the gradient of the latter,
and that of the former. The ends are averaged after a round.

FedVZ sends no gradient. Those of the body, and of what enters it, are found by
differences of the loss in random directions u, (F(x + step u) - F(x)) / step u,
a mean over some of them (zeroth-order; u is normal); the last blocks and the
head, which are at the client with the loss, are trained exactly.

LoRA trains, on all of these blocks. Ours: the server trains a copy of the body
with each client of a round and averages them after it (the first version of
SplitFed, arXiv 2004.12088), so that a FedV whose body has the clients' learning
rate is FedAvg of LoRA, but for what is sent and who computes; and the equations
of FedVZ, of which the paper's abstract says zeroth-order alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import adapted, fedms
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.offsite import emulated
from fedms_jax.core import activation, client, tree
from fedms_jax.core.contract import Algorithm, ClientUpdate, Start
from fedms_jax.core.types import (
  ActiveSet,
  Batch,
  Crossing,
  Passes,
  Plan,
  Roles,
  Tree,
)
from fedms_jax.models.tasks import weighted_mean


class Cut(NamedTuple):
  """first, last: blocks at the client. body_rate: factor of the steps of the
  body. number: bytes of a number that is sent of activations."""

  first: int
  last: int
  body_rate: float = 1.0
  number: int = 4

  def body(self, blocks: int) -> ActiveSet:
    """Which of the blocks are the server's."""
    return tuple(self.first <= b < blocks - self.last for b in range(blocks))


class Zeroth(NamedTuple):
  """directions: of each estimate. step: how far one goes in them."""

  directions: int
  step: float


def fedv(
  setting: Setting, cut: Cut, *, adapter: Tree | None = None
) -> Algorithm:
  """FedV on LoRA and head; adapter: see `adapted.fresh`.

  Raises:
    ValueError: the ends are more than the blocks.
  """
  plain = fedms.global_stage(setting, adapter=adapter)
  return _split(setting, cut, plain)._replace(
    name='fedv',
    update=_slower(plain.update, cut, setting.backbone.blocks),
    crossing=_four_messages(setting, cut),
  )


def fedvz(
  setting: Setting, cut: Cut, zeroth: Zeroth, *, adapter: Tree | None = None
) -> Algorithm:
  """FedVZ on LoRA and head; see `fedv`. In the ledger every further loss is a
  pass forward."""
  plain = fedms.global_stage(setting, adapter=adapter)
  update = client.sgd(
    _without_gradients(setting, cut, zeroth),
    setting.optimizer,
    client.everywhere,
  )
  blocks = setting.backbone.blocks
  tried = 2 * zeroth.directions * any(cut.body(blocks))
  return _split(setting, cut, plain)._replace(
    name='fedvz',
    update=_slower(update, cut, blocks),
    backbone=plain.backbone.whole(),
    passes=Passes(again=tried),
    crossing=_three_messages(setting, cut, zeroth),
  )


def _split(setting: Setting, cut: Cut, plain: Algorithm) -> Algorithm:
  """What both have in common: after a round the ends are sent."""
  blocks = setting.backbone.blocks
  if cut.first + cut.last > blocks:
    raise ValueError(
      f'the first {cut.first} and the last {cut.last} blocks are more than the '
      f'{blocks} of the model; allowed: at most that together. Lower '
      'one of them.'
    )
  body = cut.body(blocks)

  def of_ends(active: ActiveSet) -> ActiveSet:
    return tuple(a and not b for a, b in zip(active, body, strict=True))

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    del cohort
    up, down = (
      tree.nbytes_of(shapes.shared, of_ends(x)) for x in (plan.active, ever)
    )
    return float(up), float(down)

  return plain._replace(traffic=traffic)


def _slower(update: ClientUpdate, cut: Cut, blocks: int) -> ClientUpdate:
  """Steps of the body times `Cut.body_rate`."""
  if cut.body_rate == 1:
    return update
  body = cut.body(blocks)

  def step(carry, start: Start, batch: Batch, key):
    new, sums = update.step(carry, start, batch, key)
    rows = tree.indices(start.plan.active)
    factors = jnp.asarray([cut.body_rate if body[b] else 1.0 for b in rows])

    def slowed(old, x):
      return old + factors.reshape(-1, *[1] * (x.ndim - 1)) * (x - old)

    before, after = carry['train']['shared'], new['train']['shared']
    moved = jax.tree.map(slowed, before['blocks'], after['blocks'])
    train = new['train'] | {'shared': after | {'blocks': moved}}
    return new | {'train': train}, sums

  return update._replace(step=step)


def _without_gradients(setting: Setting, cut: Cut, zeroth: Zeroth):
  """The objective of FedVZ: its gradient is exact at the last blocks and the
  head, and an estimate below them."""
  backbone, task = setting.backbone, setting.task
  blocks, body = backbone.blocks, cut.body(backbone.blocks)
  first = tuple(b < cut.first for b in range(blocks))
  last = tuple(b >= blocks - cut.last for b in range(blocks))

  def objective(roles: Roles, batch: Batch, key, start: Start):
    base, stack = roles.frozen['base'], roles.shared['blocks']
    mask = adapted.mask(backbone, batch)

    def through(held: ActiveSet, part: Tree, x):
      found = activation.spans([stack._replace(part=part)], start.plan.boundary)
      found = activation.over(base['blocks'], emulated(found, held))
      return backbone.run(found, x, mask)

    def end(part: Tree, head: Tree, x):
      x = backbone.features(base, through(last, part, x), mask)
      return backbone.logits(base, head, x)

    part, head = stack.part, roles.shared['head']
    fixed = jax.lax.stop_gradient((part, head))

    def loss_of(part: Tree, x):
      out = end(fixed[0], fixed[1], through(body, part, x))
      return weighted_mean(*task.loss(out, batch))

    entering = through(first, part, batch['prefix'])
    # Without a body nothing leaves the client, and all is exact.
    x = jax.lax.stop_gradient(entering) if any(body) else entering
    out = end(part, head, through(body, fixed[0], x))
    active, loss = start.plan.active, task.loss(out, batch)
    total = weighted_mean(*loss)
    if any(body) and _meet(active, body):
      only = _rows_of(body, active)
      slope = estimated(
        lambda p: loss_of(p, x), fixed[0], jax.random.fold_in(key, 0), zeroth,
        only,
      )  # fmt: skip
      total += _inner(slope, part)
    if any(body) and _meet(active, first):
      slope = estimated(
        lambda y: loss_of(fixed[0], y), x, jax.random.fold_in(key, 1), zeroth
      )
      total += _inner(slope, entering)
    # What is added stands for gradients; it is no loss.
    return total, adapted.sums(task, out, loss, batch)

  return objective


def estimated(
  function: Callable,
  x: Tree,
  key,
  zeroth: Zeroth,
  only: Callable[[Tree], Tree] = lambda u: u,
) -> Tree:
  """The gradient of a scalar function at x, from its values alone: its
  expected cosine with the true one is about sqrt(P / (P + d)) for P directions
  in d dimensions. only: what of a direction counts."""
  here, leaves = function(x), jax.tree.structure(x)

  def direction(number):
    keys = jax.random.split(jax.random.fold_in(key, number), leaves.num_leaves)
    keys = jax.tree.unflatten(leaves, list(keys))
    return only(
      jax.tree.map(lambda k, v: jax.random.normal(k, v.shape), keys, x)
    )

  def added(number, total):
    u = direction(number)
    there = function(tree.add(x, tree.scale(u, zeroth.step)))
    slope = (there - here) / zeroth.step
    return tree.add(total, tree.scale(u, slope / zeroth.directions))

  zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, jnp.float32), x)
  found = jax.lax.fori_loop(0, zeroth.directions, added, zeros)
  return jax.lax.stop_gradient(found)


def _rows_of(held: ActiveSet, active: ActiveSet) -> Callable[[Tree], Tree]:
  """Zeros in the rows [d, ...] of blocks that are not held."""
  here = jnp.asarray([held[b] for b in tree.indices(active)])

  def only(u: Tree) -> Tree:
    return jax.tree.map(
      lambda x: jnp.where(here.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0), u
    )

  return only


def _meet(active: ActiveSet, held: ActiveSet) -> bool:
  return any(a and h for a, h in zip(active, held, strict=True))


def _inner(slope: Tree, x: Tree):
  """<slope, x>, whose gradient is the slope."""
  return sum(
    jnp.sum(g * y.astype(jnp.float32))
    for g, y in zip(jax.tree.leaves(slope), jax.tree.leaves(x), strict=True)
  )


def _activations(setting: Setting, cut: Cut, shapes: Roles) -> float:
  """Bytes of what enters the body, of one example."""
  width = shapes.frozen['base']['blocks']['norm1']['scale'].shape[-1]
  return float(setting.backbone.cost.tokens * width * cut.number)


def _sides(setting: Setting, cut: Cut, plan: Plan):
  """Whether there is a body; whether it trains; whether what is below does;
  which blocks the client computes."""
  blocks = setting.backbone.blocks
  body = cut.body(blocks)
  first = tuple(b < cut.first for b in range(blocks))
  held = tuple(not b for b in body)
  return any(body), _meet(plan.active, body), _meet(plan.active, first), held


def _four_messages(setting: Setting, cut: Cut):
  """Those of FedV; gradients pass only where something below them trains."""

  def crossing(shapes: Roles, plan: Plan) -> Crossing:
    one = _activations(setting, cut, shapes)
    some, body, first, held = _sides(setting, cut, plan)
    up, down = some * (1 + (body or first)), some * (1 + first)
    return Crossing(up * one, down * one, float(up + down), held)

  return crossing


def _three_messages(setting: Setting, cut: Cut, zeroth: Zeroth):
  """Those of FedVZ: what enters the body, also moved; what comes of it, by the
  body and a moved one; and losses, whose few bytes are not counted."""

  def crossing(shapes: Roles, plan: Plan) -> Crossing:
    one, p = _activations(setting, cut, shapes), zeroth.directions
    some, body, first, held = _sides(setting, cut, plan)
    up, down = some * (1 + p * first), some * (1 + p * first + p * body)
    return Crossing(up * one, down * one, float(some * (2 + body)), held)

  return crossing
