"""What the server does with a round: totals of contributions, then its step.

`collect` adds what clients send to the totals, `close` turns the totals into
the next shared tree.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.core import compile, tree
from fedms_jax.core.types import Algorithm, Plan, Roles, Tree


class Totals(NamedTuple):
  """What a round has gathered so far.

  values: contributions, whole shared trees (with a leading K for 'stack').
  weights: summed weights by top-level key, [L] for stacked keys.
  """

  values: Tree
  weights: dict[str, Any]


class ServerState(NamedTuple):
  """The server optimizer's state by top-level key; stacked keys have one
  state per block, so a newly active block starts fresh."""

  states: dict[str, Any]


def begin_server(algorithm: Algorithm, shared: Tree) -> ServerState:
  """Fresh server optimizer state."""
  init = algorithm.server.init
  return ServerState(
    {
      key: jax.vmap(init)(value) if tree.is_stacked(key) else init(value)
      for key, value in shared.items()
    }
  )


def empty_totals(algorithm: Algorithm, shared: Tree, blocks: int) -> Totals:
  """Totals of no client, for aggregators that sum."""
  leaves, structure = jax.tree.flatten(
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shared)
  )
  shapes = _contributed(algorithm, structure, tuple(leaves))
  values = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  weights = {
    key: jnp.zeros(blocks if tree.is_stacked(key) else ()) for key in values
  }
  return Totals(values, weights)


@functools.lru_cache(maxsize=64)
def _contributed(algorithm: Algorithm, structure, leaves) -> Tree:
  """Shapes of a contribution; finding them traces the aggregator."""
  shared = jax.tree.unflatten(structure, leaves)
  return jax.eval_shape(
    lambda s: algorithm.aggregator.contribute(s, s, jnp.float32(1)), shared
  )


def collect(algorithm: Algorithm, totals, values, counted, plan: Plan):
  """Adds contributions [K, ...] with weights [K] to the totals; without
  totals, gives them apart as `Totals` with a leading K."""
  mask, blocks = algorithm.masks(plan)[0], len(plan.active)
  out, weights = {}, {}
  for key, value in values.items():
    held = tree.trained(mask, key)
    weights[key] = counted
    if tree.is_stacked(key):
      rows = (True,) * blocks if held is True else held
      weights[key] = counted[:, None] * jnp.asarray(rows, jnp.float32)
    at = tree.indices(held) if isinstance(held, tuple) else ...
    if totals is None:
      out[key] = _spread(value, at, blocks) if tree.is_stacked(key) else value
    else:
      out[key] = jax.tree.map(
        lambda t, x, at=at: t.at[at].add(jnp.sum(x, axis=0)),
        totals.values[key],
        value,
      )
  if totals is None:
    return Totals(out, weights)
  summed = {k: totals.weights[k] + jnp.sum(w, 0) for k, w in weights.items()}
  # Keys that this plan does not train stay as they were.
  return Totals(totals.values | out, totals.weights | summed)


def _spread(stacked, at, blocks: int):
  """Rows [K, d, ...] at their places among all blocks [K, L, ...]."""

  def spread(x):
    if at is ...:
      return x
    whole = jnp.zeros((x.shape[0], blocks, *x.shape[2:]), x.dtype)
    return whole.at[:, at].set(x)

  return jax.tree.map(spread, stacked)


@compile.jit(static=(0,), donate=(2,), light=True)
def close(
  algorithm: Algorithm, shared: Tree, server: ServerState, totals: Totals
):
  """The server's step: (shared, server state, measured) after the round.

  The difference to what the aggregator returns is the gradient of the server
  optimizer (FedOpt, arXiv 2003.00295). What nobody held active is untouched,
  optimizer state included. A key that no client contributes to is the
  server's own, and always moves.
  """
  aggregator = algorithm.aggregator
  merged = aggregator.merge(shared, totals.values, totals.weights)
  gradient = tree.subtract(shared, merged)
  update = algorithm.server.update
  new, states = {}, {}
  for key, before in shared.items():
    stacked = tree.is_stacked(key)
    move = jax.vmap(update) if stacked else update
    weight = totals.weights.get(key, jnp.ones(1))
    if aggregator.reduction == 'stack' or key not in totals.weights:
      weight = jnp.sum(weight, axis=0)
    steps, state = move(gradient[key], server.states[key], before)
    after = optax.apply_updates(before, steps)
    new[key] = _where_held(weight > 0, after, before)
    states[key] = _where_held(weight > 0, state, server.states[key])
  measured = {}
  if aggregator.measure is not None:
    measured = aggregator.measure(shared, totals.values, totals.weights)
  return new, ServerState(states), measured


@compile.jit(static=(0,), light=True)
def fold(algorithm: Algorithm, roles: Roles, totals: Totals, key) -> Roles:
  """The roles after `Algorithm.fold`."""
  return algorithm.fold(roles, totals.values, totals.weights, key)


def _where_held(held, after, before):
  """`after` where the blocks [L] (or the scalar) were held, else `before`."""

  def pick(x, y):
    return jnp.where(
      held.reshape(held.shape + (1,) * (x.ndim - held.ndim)), x, y
    )

  return jax.tree.map(pick, after, before)
