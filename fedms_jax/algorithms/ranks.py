"""Mixed ranks: a client trains the first columns of A and rows of B.

One scale serves all ranks, alpha / R with R = --lora.rank, the rank that the
server keeps: a client of rank r < R has the server's LoRA cut to r, neither
more nor less of it. (With alpha / r the same factors would mean another
model at every client.)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedms_jax.base import Batch, ClientUpdate, Plan, Roles, Tree

RankOf = Callable[[int], int]  # client -> its rank


def truncated(update: ClientUpdate, rank: int) -> ClientUpdate:
  """Local training of the shared 'blocks' at rank `Plan.variant`.

  What is sent is filled up with zeros to `rank`, which is R, beside
  'rank_blocks' [d]: how many columns are real. Variant None is rank R, and
  sends no ranks.
  """

  def at_rank(roles: Roles, plan: Plan) -> Roles:
    if plan.variant is None:
      return roles
    blocks = cut(roles.shared['blocks'], plan.variant)
    return roles._replace(shared=roles.shared | {'blocks': blocks})

  def begin(roles: Roles, plan: Plan):
    return update.begin(at_rank(roles, plan), plan)

  def step(carry, roles: Roles, batch: Batch, key, plan: Plan):
    return update.step(carry, at_rank(roles, plan), batch, key, plan)

  def finish(carry, roles: Roles, plan: Plan):
    shared, personal = update.finish(carry, at_rank(roles, plan), plan)
    if plan.variant is None:
      return shared, personal
    blocks = padded(shared['blocks'], rank)
    ranks = jnp.full(sum(plan.active), plan.variant)
    return shared | {'blocks': blocks, 'rank_blocks': ranks}, personal

  return ClientUpdate(begin, step, finish, update.sums)


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
