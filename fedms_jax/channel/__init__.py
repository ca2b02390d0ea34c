"""Channels: what happens between clients and the server to all that passes.

`chain` puts several together, as optax does with transformations: at the
client from left to right, at the server from right to left.
"""

from __future__ import annotations

from typing import Any

import jax

from fedms_jax.core.contract import Channel, Message, Received, Sender
from fedms_jax.core.types import Tree
from fedms_jax.core.wire import Keys, Wire


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
  wire = _wires(channels)
  return Channel(init, encode, decode, size, events or None, measure, wire)


def _wires(channels: tuple[Channel, ...]) -> Wire:
  """What members do beside encoding and decoding."""
  keys = Keys()
  for channel in channels:
    keys = keys.plus(channel.wire.keys)
  # The last one says how what goes through all of them is coded.
  coded = [c.wire.coded for c in channels if c.wire.coded is not None]
  down = _only(channels, 'coded_down')
  return Wire(
    begin=_each(channels, 'begin'),
    open=_each(channels, 'open'),
    receive=_receive(channels),
    keep=_keep(channels),
    coded=coded[-1] if coded else None,
    coded_down=None if down is None else channels[down].wire.coded_down,
    keys=keys,
  )


def _only(channels: tuple[Channel, ...], field: str) -> int | None:
  """The one member with a part of `Wire`; None: no member has it."""
  has = [i for i, c in enumerate(channels) if getattr(c.wire, field)]
  if len(has) > 1:
    raise ValueError(
      f'channels {has[0]} and {has[1]} of a chain both have `Wire.{field}`; '
      'allowed: one. Leave one of them out.'
    )
  return has[0] if has else None


def _each(channels: tuple[Channel, ...], field: str):
  """A part of `Wire` that makes states, of all members that have it."""
  if not any(getattr(c.wire, field) for c in channels):
    return None

  def made(state: Tree, value, *key):
    states = list(state)
    for number, channel in enumerate(channels):
      hook = getattr(channel.wire, field)
      if hook is not None:
        more = (jax.random.fold_in(k, number) for k in key)
        states[number] = hook(states[number], value, *more)
    return tuple(states)

  return made


def _receive(channels: tuple[Channel, ...]):
  at = _only(channels, 'receive')
  own = None if at is None else channels[at].wire.receive
  if at is None or own is None:
    return None

  def receive(state: Tree, shared: Tree, key) -> Tree:
    return own(state[at], shared, jax.random.fold_in(key, at))

  return receive


def _keep(channels: tuple[Channel, ...]):
  at = _only(channels, 'keep')
  own = None if at is None else channels[at].wire.keep
  if own is None:
    return None

  def keep(state: Tree, message: Message, key, sender: Sender, kept: Tree):
    for number, (channel, one) in enumerate(zip(channels, state, strict=True)):
      key_of = jax.random.fold_in(key, number)
      if number == at:
        message, kept = own(one, message, key_of, sender, kept)
      else:
        message = channel.encode(one, message, key_of, sender)
    return message, kept

  return keep
