"""The server of FedAsync, that mixes a client's model into its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.contract import Message, Received, Sender
from fedms_jax.core.shapes import tail
from fedms_jax.server.averaged import Aggregator, divide, weighed


@functools.lru_cache(maxsize=32)
def mixing(alpha: float, discount: Callable[[Any], Any]) -> Aggregator:
  """w <- (1 - a) w + a w_k with a = alpha s(tau) (FedAsync, arXiv 1903.03934,
  algorithm 1).

  It mixes whole models, not differences, so that a stale one pulls the server
  back to where it began. Of several reports (a buffer of one is FedAsync) w_k
  is their mean, and tau the mean of their staleness. discount: s, see
  `channel.staleness.Discount`.
  """

  def send(before, message: Message, weight, sender: Sender) -> Message:
    del before, sender
    cover = tree.scale(message.cover, weight)
    update = jax.tree.map(
      lambda c, x: jax.tree.map(lambda x: x * tail(c, x), x),
      cover,
      message.update,
    )
    return weighed(message, weight)._replace(update=update)

  def merge(before, received: Received):
    tau = received.stale / jnp.maximum(received.count, 1.0)
    rate = alpha * discount(tau)
    moved = tree.subtract(divide(received.update, received.cover), before)
    return tree.add(before, tree.scale(moved, rate))

  return Aggregator(send, 'sum', merge)
