"""One round of a small cohort, through the engine, for tests of a method."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import reduction, rounds, tree
from fedms_jax.core.contract import Clients, Work
from fedms_jax.core.types import Roles
from tests import world


def begin(algorithm, scale=0.3):
  """The roles at the first round, or after LoRA has learned something."""
  roles = jax.jit(algorithm.begin)(jax.random.key(2), world.start())
  return world.trained(roles, scale) if scale else roles


class After(NamedTuple):
  """What a round gives. personal: [K, ...]."""

  roles: Roles
  personal: Any
  totals: Any
  measured: dict
  memory: Any


def one_round(
  algorithm, roles, rows, plans, *, how='vmap', weights=None, personal=None,
  key=5, memory=None,
):  # fmt: skip
  """A round.

  plans: one, or one for each client. how: 'vmap' of all clients of a plan,
  'chunk' (one client, compiled whole) or 'loop' (step by step). memory: of the
  server, None: as at first.
  """
  count = len(rows)
  plans = plans if isinstance(plans, list) else [plans] * count
  if weights is None:
    weights = (rows >= 0).sum((1, 2)).astype(np.float32)
  if personal is None:
    personal = world.stacked(roles.personal, count)
  summing = algorithm.server.reduction == 'sum'
  if memory is None:
    roles, memory, channel = reduction.begin(algorithm, roles, 0)
  else:
    roles = reduction.broadcast(algorithm, roles, memory)
    channel = ()
  totals = reduction.empty(algorithm, roles) if summing else None
  work = Work(world.table(), jax.random.key(key), channel=channel)
  parts, kept = [], []
  for places in _groups(plans, 1 if how != 'vmap' else count):
    mine = Clients(
      np.array(places, np.uint32),
      tree.rows(personal, np.array(places)),
      rows[places],
      weights[places],
    )
    plan = plans[places[0]]
    out, new, _ = rounds.train(algorithm, plan, roles, work, totals, mine)
    totals = out if summing else None
    parts.append(out)
    kept.append((places, new))
  order = np.argsort(np.concatenate([places for places, _ in kept]))
  if not summing:
    totals = jax.tree.map(lambda *xs: jnp.concatenate(xs)[order], *parts)
  personal = jax.tree.map(
    lambda *xs: jnp.concatenate(xs)[order], *(new for _, new in kept)
  )
  roles, memory, _, measured = reduction.close(
    algorithm, roles, memory, channel, totals, work.key, 0,
    None, None, world.public(algorithm),
  )  # fmt: skip
  return After(roles, personal, totals, measured, memory)


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
