"""Channels: what happens between clients and the server to all that passes.

`chain` puts several together, as optax does with transformations: at the
client from left to right, at the server from right to left.
"""

from __future__ import annotations

from typing import Any

import jax

from fedms_jax.core.contract import Channel, Message, Received, Sender
from fedms_jax.core.types import Tree


def chain(*channels: Channel) -> Channel:
  """The channels one after another, each with a state of its own.

  event: those of the channels that have one, in order; None without any.
  """

  def init(key, message: Message) -> Tree:
    states = []
    for number, channel in enumerate(channels):
      one = jax.random.fold_in(key, number)
      states.append(channel.init(one, message))
      # Of shapes, for there may be no message yet.
      message = jax.eval_shape(
        lambda m, k, c=channel, s=states[-1]: c.encode(s, m, k, Sender()),
        message,
        one,
      )
    return tuple(states)

  def encode(state: Tree, message: Message, key, sender: Sender) -> Message:
    for number, (channel, one) in enumerate(zip(channels, state, strict=True)):
      key_of = jax.random.fold_in(key, number)
      message = channel.encode(one, message, key_of, sender)
    return message

  def decode(state: Tree, received: Received, key):
    states: list[Any] = list(state)
    for number in reversed(range(len(channels))):
      one = jax.random.fold_in(key, number)
      states[number], received = channels[number].decode(
        states[number], received, one
      )
    return tuple(states), received

  def size(plain: float) -> float:
    for channel in channels:
      plain = channel.bytes(plain)
    return plain

  def measure(state: Tree) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for channel, one in zip(channels, state, strict=True):
      if channel.measure is not None:
        found |= channel.measure(one)
    return found

  events = tuple(c.event for c in channels if c.event is not None)
  return Channel(init, encode, decode, size, events or None, measure)
