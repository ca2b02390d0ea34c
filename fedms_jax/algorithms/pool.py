"""A pool of what clients sent last: the server's memory of their prompts.

It is {'prompts' [P, T, D], 'owners' [P, 2]}, newest first. A client names
itself by a ticket, two random numbers that it draws once: what trains it knows
no number of a client.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Tree


def empty(size: int, prompt) -> Tree:
  """A pool for `size` prompts like `prompt`."""
  return {
    'prompts': jnp.zeros((size, *prompt.shape)),
    'owners': jnp.broadcast_to(nobody(), (size, 2)),
  }


def nobody():
  """The ticket of who has none yet."""
  return -jnp.ones(2)


def is_nobody(ticket):
  return ticket[..., 0] < 0


def draw(key):
  """A new ticket, of 2^46."""
  return jax.random.uniform(key, (2,))


def nearest(pool: Tree, own, ticket, count: int):
  """The prompts of others nearest to `own` [T, D], nearest first, and which of
  them exist: ([n, T, D], bool [n]), n at most `count`."""
  prompts, owners = pool['prompts'], pool['owners']
  others = ~is_nobody(owners) & ~_same(owners, ticket)
  distance = jnp.sum(jnp.square(prompts - own[None]), axis=(1, 2))
  order = jnp.argsort(jnp.where(others, distance, jnp.inf))[:count]
  return prompts[order], others[order]


def renewed(pool: Tree, prompts, tickets, sent) -> Tree:
  """The pool with new prompts [K, T, D] of the owners `tickets` [K, 2] in
  place of their old ones, or of the oldest.

  sent: bool [K], which of them count.
  """
  old = pool['owners']
  replaced = jnp.any(_same(old[:, None], tickets[None]) & sent[None], axis=1)
  kept = jnp.concatenate([sent, ~replaced & ~is_nobody(old)])
  order = jnp.argsort(~kept, stable=True)[: len(old)]
  owners = jnp.concatenate([tickets, old])[order]
  return {
    'prompts': jnp.concatenate([prompts, pool['prompts']])[order],
    'owners': jnp.where(kept[order][:, None], owners, nobody()),
  }


def _same(owners, ticket):
  return jnp.all(owners == lead(ticket, owners), axis=-1)
