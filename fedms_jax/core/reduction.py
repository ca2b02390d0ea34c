"""What the server does with a round: it adds up messages, then takes its step.

`sent` makes a message of what came of a client, `collect` adds messages up,
`close` turns them into the roles of the next round. All that passes from
clients to the server passes through `Algorithm.channel` here.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fedms_jax.core import arrays, compile, seeds, tree
from fedms_jax.core.contract import (
  PLAIN,
  Algorithm,
  Channel,
  ClientResult,
  Clients,
  Context,
  Message,
  Received,
  Sender,
  Start,
)
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Batch, Plan, Public, Roles, Tree
from fedms_jax.core.wire import INNER, RESIDUAL, Opening

_WIRE = 0x77697265  # of a client's key, beside its steps: the channel's draws
SERVER = 'server'  # the key of roles.frozen that the server's memory has


def covered(message: Message) -> Message:
  """The message with its cover: 1, [d] for stacked keys, where it has none."""
  if message.cover is not None:
    return message

  def ones(key, value):
    if not tree.is_stacked(key):
      return jnp.float32(1)
    return jnp.ones(len(jax.tree.leaves(value)[0]), jnp.float32)

  cover = {key: ones(key, value) for key, value in message.update.items()}
  return message._replace(cover=cover)


def sent(
  algorithm: Algorithm,
  start: Start,
  result: ClientResult,
  its: Clients,
  key,
  channel,
):
  """What reaches the wire of a client: (message, whether it counts, personal,
  sums).

  A client whose result is not finite sends zeros, weighs nothing, and keeps
  its personal state. its: the client, without an axis. key: the client's.
  channel: its state.
  """
  roles, weight = start.roles, its.weights
  sender = Sender(id=its.ids, round=start.moment.round)
  if its.stale is not None:
    sender = sender._replace(stale=its.stale)
  finite = tree.all_finite((result.message, result.personal, result.sums))
  mask, kept = algorithm.masks(start.plan)[0], result.personal
  before = tree.narrow(roles.shared, mask)
  message = algorithm.server.send(
    before, covered(result.message), weight, sender
  )
  message = tree.where(finite, message, jax.tree.map(jnp.zeros_like, message))
  key = jax.random.fold_in(key, _WIRE)
  if algorithm.channel is not PLAIN:
    message, kept = _encoded(
      algorithm.channel, channel, message, key, sender, kept, mask
    )
    # Who only fills the chunk adds nothing, not even noise of its own.
    nothing = jax.tree.map(jnp.zeros_like, message)
    message = tree.where(weight > 0, message, nothing)
  personal = tree.where(finite, kept, roles.personal)
  counts = finite & (weight > 0)
  skipped = jnp.stack([1.0 - finite, jnp.float32(1)])
  skipped = jnp.where(weight > 0, skipped, 0.0)
  zeros = jax.tree.map(jnp.zeros_like, result.sums)
  sums = tree.where(counts, result.sums, zeros)
  return message, counts, personal, sums | {'skipped': skipped}


def _encoded(
  channel: Channel, state, message: Message, key, sender, personal: Tree, mask
):
  """(the message on the wire, the client's personal tree with what the channel
  keeps there of the blocks that it has sent)."""
  keep = channel.wire.keep
  if keep is None:
    return channel.encode(state, message, key, sender), personal
  inner = personal[INNER]
  mine = tree.narrow(inner[RESIDUAL], mask)
  message, mine = keep(state, message, key, sender, mine)
  inner = inner | {RESIDUAL: tree.widen(inner[RESIDUAL], mine, mask)}
  return message, personal | {INNER: inner}


def empty(algorithm: Algorithm, roles: Roles) -> Received:
  """What no client sends, of all blocks; of 'stack' without the axis K."""
  return arrays.zeros(empty_shapes(algorithm, roles))


def empty_shapes(algorithm: Algorithm, roles: Roles) -> Received:
  """Shapes of `empty`; those of the roles are enough for it."""
  update, extras, cover = message_shapes(algorithm, roles)[1]
  blocks = algorithm.backbone.blocks

  def role(part: Tree) -> Tree:
    return {key: whole(value, key) for key, value in part.items()}

  def whole(value: Tree, key: str) -> Tree:
    if not tree.is_stacked(key):
      return value
    # A method may keep some blocks to itself.
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((blocks, *x.shape[1:]), x.dtype), value
    )

  extras = {name: role(part) for name, part in extras.items()}
  number = jax.ShapeDtypeStruct((), jnp.float32)
  return Received(role(update), extras, role(cover), number, number)


def message_shapes(algorithm: Algorithm, roles: Roles):
  """Shapes of a message that covers all blocks: as `Server.send` gives it, and
  as it is on the wire."""
  leaves, structure = jax.tree.flatten(
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), roles)
  )
  return _message_shapes(algorithm, structure, tuple(leaves))


@functools.lru_cache(maxsize=64)
def _message_shapes(algorithm: Algorithm, structure, leaves):
  """Finding them traces a client's beginning and end."""
  plan = Plan((True,) * algorithm.backbone.blocks, 0)
  update, server, channel = (
    algorithm.update,
    algorithm.server,
    algorithm.channel,
  )

  def of(roles: Roles, key):
    start = Start(roles, plan)
    message, _ = update.finish(update.begin(start), start)
    before = tree.narrow(roles.shared, algorithm.masks(plan)[0])
    message = server.send(before, covered(message), jnp.float32(1), Sender())
    state = channel.init(key, message)
    return message, channel.encode(state, message, key, Sender())

  roles = jax.tree.unflatten(structure, leaves)
  return jax.eval_shape(of, roles, jax.random.key(0))


def collect(
  algorithm: Algorithm,
  totals: Received | None,
  messages: Message,
  counts,
  plan: Plan,
  stale=None,
) -> Received:
  """Adds messages [K, ...], of which `counts` [K] count, to the totals; without
  totals, gives them apart with a leading K. stale: [K]; None: none is."""
  mask, blocks = algorithm.masks(plan)[0], len(plan.active)

  def role(had, new):
    return _placed(had, new, mask, blocks)

  counts = counts.astype(jnp.float32)
  stale = jnp.zeros_like(counts) if stale is None else stale * counts
  if totals is None:
    extras = {name: role(None, x) for name, x in messages.extras.items()}
    update, cover = role(None, messages.update), role(None, messages.cover)
    return Received(update, extras, cover, counts, stale)
  return Received(
    role(totals.update, messages.update),
    {name: role(totals.extras[name], x) for name, x in messages.extras.items()},
    role(totals.cover, messages.cover),
    totals.count + jnp.sum(counts),
    totals.stale + jnp.sum(stale),
  )


def _placed(had: Tree | None, new: Tree, mask, blocks: int) -> Tree:
  """Rows [K, d, ...] at their places among all blocks, added to what is there
  or apart; keys that this plan does not train stay as they were."""
  out = {}
  for key, value in new.items():
    held, stacked = tree.trained(mask, key), tree.is_stacked(key)
    at = tree.indices(held) if isinstance(held, tuple) else ...

    def added(total, x, at=at):
      return total.at[at].add(jnp.sum(x, axis=0))

    def apart(x, at=at, stacked=stacked):
      if at is ... or not stacked:
        return x
      whole = jnp.zeros((x.shape[0], blocks, *x.shape[2:]), x.dtype)
      return whole.at[:, at].set(x)

    if had is None:
      out[key] = jax.tree.map(apart, value)
    else:
      out[key] = jax.tree.map(added, had[key], value)
  return out if had is None else had | out


def begin(algorithm: Algorithm, roles: Roles, seed: int):
  """(roles with what clients see of it, memory, channel's state) before the
  first round of a stage."""
  keys = [seeds.stream(seed, Stream.SERVER, n) for n in range(2)]
  return _with_memory(algorithm, roles, keys, memory(algorithm, keys[0], roles))


def begin_shapes(algorithm: Algorithm, roles: Roles):
  """Shapes of `begin`. roles: arrays or shapes."""

  def begun(roles: Roles, key):
    memory = algorithm.server.init(key, roles)
    return _with_memory(algorithm, roles, [key, key], memory)

  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(begun, roles, key)


def _with_memory(algorithm: Algorithm, roles: Roles, keys, memory: Tree):
  roles = broadcast(algorithm, roles, memory)
  state = algorithm.channel.init(keys[1], message_shapes(algorithm, roles)[0])
  if algorithm.channel.wire.begin is not None:
    state = algorithm.channel.wire.begin(state, roles.shared)
  return roles, memory, state


@compile.jit(static=(0,), light=True)
def memory(algorithm: Algorithm, key, roles: Roles) -> Tree:
  """The server's memory before the first round of a stage."""
  return algorithm.server.init(key, roles)


@compile.jit(static=(0,), light=True)
def opened(algorithm: Algorithm, roles: Roles, channel, opening: Opening, key):
  """(the shared tree that clients get, the channel's state) at the start of a
  round, for channels with `Wire.open` or `Wire.receive`. key: the channel's."""
  wire, shared = algorithm.channel.wire, roles.shared
  key = jax.random.fold_in(key, _WIRE)  # decode draws by its own
  if wire.open is not None:
    channel = wire.open(channel, opening, key)
  if wire.receive is not None:
    shared = wire.receive(channel, shared, key)
  return shared, channel


@compile.jit(static=(0,), light=True)
def close(
  algorithm: Algorithm,
  roles: Roles,
  memory: Tree,
  channel: Tree,
  totals: Received,
  key,
  number,
  noise=None,
  public: Public | None = None,
  rows: Batch | None = None,
):
  """The server's step after a round.

  key: the round's. noise: the channel's key; None: the round's, for channels
  that draw nothing. public: see `Received`. rows: public ones, of `Context`.

  Returns:
    (roles, memory, channel's state, measured).
  """
  totals = totals._replace(public=public)
  channel, received = algorithm.channel.decode(
    channel, totals, key if noise is None else noise
  )
  context = Context(key, number, rows)
  roles, memory, measured = algorithm.server.step(
    roles, memory, received, context
  )
  if algorithm.channel.measure is not None:
    measured = measured | algorithm.channel.measure(channel)
  return broadcast(algorithm, roles, memory), memory, channel, measured


def broadcast(algorithm: Algorithm, roles: Roles, memory: Tree) -> Roles:
  """The roles with what clients see of the server's memory."""
  if algorithm.server.broadcast is None:
    return roles
  seen = {SERVER: algorithm.server.broadcast(memory)}
  return roles._replace(frozen=roles.frozen | seen)


def rewrites(algorithm: Algorithm, roles: Roles) -> bool:
  """Whether the server's step changes what is frozen, beside what clients see
  of its memory. roles: arrays or shapes.

  The step is traced: what it gives back as it got it is the same variable. A
  value that is computed anew counts as changed, even if it is equal.
  """
  roles, memory, _ = begin_shapes(algorithm, roles)
  received = empty_shapes(algorithm, roles)
  if algorithm.server.reduction == 'stack':
    received = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), received
    )

  def frozen(frozen, shared, memory, received, key):
    whole = Roles(frozen, shared, None)
    after, *_ = algorithm.server.step(whole, memory, received, Context(key))
    return after.frozen

  traced = jax.make_jaxpr(frozen)(
    roles.frozen, roles.shared, memory, received, jax.random.key(0)
  ).jaxpr
  count = len(jax.tree.leaves(roles.frozen))
  return list(traced.invars[:count]) != list(traced.outvars)
