"""A client's profile: the mean of its rows' frozen features, of norm 1."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from fedms_jax.algorithms import adapted
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import ClientUpdate, Message, Start
from fedms_jax.core.types import Batch, Tree


def profiled(
  setting: Setting,
  update: ClientUpdate,
  put: Callable[[Message, Tree, jnp.ndarray], tuple[Message, Tree]],
) -> ClientUpdate:
  """Also makes the profile of the rows that a client's steps have read.

  put: (message, personal, profile [D]) -> (message, personal).
  """

  def begin(start: Start):
    total = jnp.zeros(setting.backbone.width)
    seen = {'total': total, 'count': jnp.float32(0)}
    return {'models': update.begin(start), 'seen': seen}

  def step(carry, start: Start, batch: Batch, key):
    models, sums = update.step(carry['models'], start, batch, key)
    held = batch['mask'].astype(jnp.float32)
    seen = {
      'total': carry['seen']['total']
      + held @ adapted.directions(setting, batch),
      'count': carry['seen']['count'] + jnp.sum(held),
    }
    return {'models': models, 'seen': seen}, sums

  def finish(carry, start: Start):
    message, personal = update.finish(carry['models'], start)
    seen = carry['seen']
    mean = seen['total'] / jnp.maximum(seen['count'], 1.0)
    return put(message, personal, mean)

  return ClientUpdate(begin, step, finish, update.sums)
