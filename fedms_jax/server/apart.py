"""Servers that add messages up, told apart on the way."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fedms_jax.core.contract import Context, Received, Server
from fedms_jax.core.types import Roles


@functools.lru_cache(maxsize=64)
def apart(server: Server) -> Server:
  """The server to which messages come apart, and which adds them up itself, so
  that a channel may look at each of them."""
  if server.reduction == 'stack':
    return server

  def step(roles: Roles, memory, received: Received, context: Context):
    public = received.public
    received = jax.tree.map(
      lambda x: jnp.sum(x, axis=0), received._replace(public=None)
    )
    received = received._replace(public=public)
    return server.step(roles, memory, received, context)

  return server._replace(reduction='stack', step=step)
