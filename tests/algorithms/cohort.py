"""One round of a small cohort, through the engine, for tests of a method."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import reduction, rounds
from fedms_jax.core.types import Roles
from tests import world


def begin(algorithm, scale=0.3):
  """The roles at the first round, or after LoRA has learned something."""
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  return world.trained(roles, scale) if scale else roles


def one_round(
  algorithm, roles, rows, plans, *, how='vmap', weights=None, personal=None,
  key=5,
):  # fmt: skip
  """(roles, personal [K, ...], totals, measured) after a round.

  plans: one, or one for each client. how: 'vmap' of all clients of a plan,
  'chunk' (one client, compiled whole) or 'loop' (step by step).
  """
  count = len(rows)
  plans = plans if isinstance(plans, list) else [plans] * count
  if weights is None:
    weights = (rows >= 0).sum((1, 2)).astype(np.float32)
  if personal is None:
    personal = world.stacked(roles.personal, count)
  summing = algorithm.aggregator.reduction == 'sum'
  totals = reduction.empty_totals(algorithm, roles.shared, world.BLOCKS)
  totals = totals if summing else None
  function = rounds.train_stepwise if how == 'loop' else rounds.train_chunk
  parts, kept = [], []
  for places in _groups(plans, 1 if how != 'vmap' else count):
    mine = jax.tree.map(lambda x, at=places: x[np.array(at)], personal)
    out, new, _ = function(
      algorithm, roles.frozen, roles.shared, mine, world.table(),
      rows[places], weights[places], jax.random.key(key),
      np.array(places, np.uint32), totals, plans[places[0]],
    )  # fmt: skip
    totals = out if summing else None
    parts.append(out)
    kept.append((places, new))
  order = np.argsort(np.concatenate([places for places, _ in kept]))
  if not summing:
    totals = jax.tree.map(lambda *xs: jnp.concatenate(xs)[order], *parts)
  personal = jax.tree.map(
    lambda *xs: jnp.concatenate(xs)[order], *(new for _, new in kept)
  )
  server = reduction.begin_server(algorithm, roles.shared)
  shared, _, measured = reduction.close(algorithm, roles.shared, server, totals)
  roles = Roles(roles.frozen, shared, roles.personal)
  if algorithm.fold is not None:
    roles = reduction.fold(algorithm, roles, totals, jax.random.key(key))
  return roles, personal, totals, measured


def _groups(plans, width):
  for plan in dict.fromkeys(plans):
    places = [i for i, p in enumerate(plans) if p == plan]
    for i in range(0, len(places), width):
      yield places[i : i + width]


def each_alone(algorithm, roles, rows, plan):
  """What each client makes of the shared tree, trained by itself."""
  alone = []
  for i in range(len(rows)):
    part = rows[i : i + 1]
    result, *_ = one_round(algorithm, roles, part, plan, how='vmap')
    alone.append(result.shared)
  return alone
