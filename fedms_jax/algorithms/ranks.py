"""Mixed ranks: a client trains the first columns of A and rows of B; and how
it gives up the last ones (`Pruning`).

One scale serves all ranks, alpha / R with R = `Spec.rank`, the rank that the
server keeps: a client of rank r < R has the server's LoRA cut to r, neither
more nor less of it. (With alpha / r the same factors would mean another
model at every client.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora
from fedms_jax.core import tree
from fedms_jax.core.contract import ClientUpdate, Start
from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Batch, Plan, Roles, Tree

RankOf = Callable[[int], int]  # client -> its rank


def truncated(update: ClientUpdate, rank: int) -> ClientUpdate:
  """Local training of the shared 'blocks' at rank `Plan.variant`.

  What is sent is filled up with zeros to `rank`, which is R, with the extras
  'rank' {'blocks': [d]}: how many columns are real; an `update` that knows
  better has said so. Variant None is rank R.
  """

  def at_rank(start: Start) -> Start:
    if start.plan.variant is None:
      return start
    shared = start.roles.shared
    blocks = cut(shared['blocks'], start.plan.variant)
    return start.at(start.roles._replace(shared=shared | {'blocks': blocks}))

  def begin(start: Start):
    return update.begin(at_rank(start))

  def step(carry, start: Start, batch: Batch, key):
    return update.step(carry, at_rank(start), batch, key)

  def finish(carry, start: Start):
    message, personal = update.finish(carry, at_rank(start))
    blocks = padded(message.update['blocks'], rank)
    real = jnp.full(sum(start.plan.active), start.plan.variant or rank)
    return message._replace(
      update=message.update | {'blocks': blocks},
      extras={'rank': {'blocks': real}} | message.extras,
    ), personal

  return ClientUpdate(begin, step, finish, update.sums)


class Pruning(NamedTuple):
  """Rank self-pruning (HetLoRA, arXiv 2401.06432).

  A client of rank r calls the columns from floor(gamma r) on its tail. Its
  loss has pull * (size of the tail) beside it, where the size is the sum of
  ||A_tail||_F ||B_tail||_F over targets and active blocks. If the tail is
  smaller after a round than what the server sent, the client gives it up for
  good: it sends zeros there, and r is floor(gamma r) from then on. At least
  one column stays.

  gamma: in (0, 1). The rank is in personal['pruned'],
  the number of columns given up of the first rank, `Plan.variant`: shapes
  stay, and what is given up is 0. Under such zeros no gradient moves A or B,
  so the numbers are those of a LoRA cut to r.
  """

  gamma: float
  pull: float

  def left(self, rank, most: int):
    """max(1, floor(gamma rank)) of a traced rank in [0, most]."""
    # Exact in Python; in float32, floor(0.99 * 100) may be either of two.
    table = [max(1, int(self.gamma * r + 1e-9)) for r in range(most + 1)]
    return jnp.asarray(table)[rank]

  def penalty(self, roles: Roles, plan: Plan):
    """What is added to the loss; roles as `client.join` gives them."""
    if plan.variant is None:
      return 0.0
    left = self.left(plan.variant - roles.personal['pruned'], plan.variant)
    return self.pull * tail(roles.shared['blocks'].part, left)

  def around(self, update: ClientUpdate) -> ClientUpdate:
    """`update` at the rank that is left, and the decision after it. Goes
    within `truncated`; variant None is left alone."""

    def held(start: Start) -> Start:
      roles, plan = start.roles, start.plan
      if plan.variant is None:
        return start
      rank = plan.variant - roles.personal['pruned']
      blocks = emptied(roles.shared['blocks'], rank)
      return start.at(roles._replace(shared=roles.shared | {'blocks': blocks}))

    def begin(start: Start):
      return update.begin(held(start))

    def step(carry, start: Start, batch: Batch, key):
      return update.step(carry, held(start), batch, key)

    def finish(carry, start: Start):
      start = held(start)
      roles, plan = start.roles, start.plan
      message, personal = update.finish(carry, start)
      if plan.variant is None:
        return message, personal
      rank = plan.variant - roles.personal['pruned']
      left = self.left(rank, plan.variant)
      before = tree.narrow(roles.shared, plan.active)['blocks']
      mine = message.update['blocks']
      smaller = tail(mine, left) < tail(before, left)
      rank = jnp.where(smaller, left, rank)
      sent = message._replace(
        update=message.update | {'blocks': emptied(mine, rank)},
        extras={'rank': {'blocks': jnp.full(sum(plan.active), rank)}},
      )
      return sent, personal | {'pruned': plan.variant - rank}

    return ClientUpdate(begin, step, finish, update.sums)


def tail(factors: Tree, first):
  """sum ||A||_F ||B||_F of the columns from `first` on, over the targets and
  blocks of stacked LoRA; float32 scalar."""
  total = jnp.float32(0)
  for a, b in lora.pairs(factors).values():
    here = jnp.arange(a.shape[-1]) >= first
    by_column = lead(here, a), lead(here[:, None], b)
    total += jnp.sum(_norm(a * by_column[0]) * _norm(b * by_column[1]))
  return total


def _norm(x):
  """Frobenius norms [L], with gradient 0 where they are 0."""
  squares = jnp.sum(jnp.square(x), axis=(-2, -1))
  some = squares > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)


def emptied(factors: Tree, rank) -> Tree:
  """LoRA with zeros from column `rank` of A, and row of B, on; the rank may
  be traced."""

  def kept(path, x):
    axis = -1 if path[-1].key == 'a' else -2
    here = jnp.arange(x.shape[axis]) < rank
    return jnp.where(here if axis == -1 else here[:, None], x, 0.0)

  return jax.tree_util.tree_map_with_path(kept, factors)


def cut(lora: Tree, rank: int) -> Tree:
  """The first `rank` columns of each A, and rows of each B."""

  def first(path, x):
    return x[..., :rank] if path[-1].key == 'a' else x[..., :rank, :]

  return jax.tree_util.tree_map_with_path(first, lora)


def padded(lora: Tree, rank: int) -> Tree:
  """LoRA filled up with zeros to `rank`; inverts `cut` where those are cut."""

  def filled(path, x):
    axis = x.ndim - 1 if path[-1].key == 'a' else x.ndim - 2
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, rank - x.shape[axis])
    return jnp.pad(x, widths)

  return jax.tree_util.tree_map_with_path(filled, lora)


def variant(rank_of: RankOf) -> Callable[[int, int], int]:
  """`Algorithm.variant` of mixed ranks."""

  def rank(number: int, client: int) -> int:
    del number
    return rank_of(client)

  return rank
