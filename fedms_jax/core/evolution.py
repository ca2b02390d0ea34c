"""Local training by an evolution strategy: a step is one generation.

What is searched is a vector; what it stands for is the method's. All points of
a generation see the same batch: for a search on all of a client's rows, a batch
as large as the client is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.core import cma
from fedms_jax.core.contract import ClientUpdate, Message, Start
from fedms_jax.core.types import Batch, Tree

SEARCH = 'search'  # the key of a role tree that has the state
TOLD = 'told'  # of extras: what the server ranks clients by


class Strategy(NamedTuple):
  """How clients search.

  shape: of what. population: lambda, points of a generation. own: each client
  has a search of its own and sends nothing. told: what the server ranks clients
  by is sent, and a client begins with no path, as FedBPT's do.
  """

  shape: cma.Shape
  population: int
  own: bool = False
  told: bool = False


def check(strategy: Strategy) -> None:
  """Raises `ValueError` for a strategy without parents or dimensions."""
  for name, value, least in (
    ('Shape.size', strategy.shape.size, 2),
    ('Strategy.population', strategy.population, 4),
  ):
    if value < least:
      raise ValueError(
        f'`{name}`={value} is not allowed; allowed: {least} or more.'
      )


def evolution(
  fitness: Callable[[Any, Start, Batch, Any], tuple[Any, dict[str, Any]]],
  strategy: Strategy,
  sums: tuple[str, ...] = ('loss', 'score'),
) -> ClientUpdate:
  """Generations of CMA-ES, whose state is shared, or each client's own.

  Args:
    fitness: (point [n], start, batch, key) -> (value [], sums); less is better.
    strategy: see `Strategy`.
    sums: names of the metrics of a point; a step has their means.

  Raises:
    ValueError: the strategy is none.
  """
  check(strategy)
  shape, count = strategy.shape, strategy.population
  share = cma.weights(count)

  def begin(start: Start) -> Tree:
    role = start.roles.personal if strategy.own else start.roles.shared
    if not strategy.told:
      return {SEARCH: role[SEARCH]}
    return {SEARCH: cma.without_paths(role[SEARCH]), TOLD: _nothing()}

  def step(carry: Tree, start: Start, batch: Batch, key):
    state = carry[SEARCH]
    steps, root = cma.ask(shape, state, jax.random.fold_in(key, 0), count)
    # One after another: a point may be a whole prompt, and its pass a model's.
    values, seen = jax.lax.map(
      lambda point: fitness(point, start, batch, key), cma.points(state, steps)
    )
    best = cma.order(values)[: len(share)]
    new = {SEARCH: cma.tell(shape, state, steps[best], share, root)}
    if strategy.told:
      new[TOLD] = _noted(carry[TOLD], state, share @ values[best])
    return new, jax.tree.map(lambda x: jnp.mean(x, axis=0), seen)

  def finish(carry: Tree, start: Start):
    found = {SEARCH: carry[SEARCH]}
    if strategy.own:
      return Message({}), found
    extras = {TOLD: carry[TOLD]} if strategy.told else {}
    return Message(found, extras), start.roles.personal

  return ClientUpdate(begin, step, finish, sums)


def _nothing() -> Tree:
  """What a client tells before its first generation."""
  return {'fitness': jnp.float32(0), 'squares': jnp.float32(0)}


def _noted(told: Tree, state: Tree, fitness) -> Tree:
  """What a client tells after a further generation, which had the sigma of
  `state` and parents of this fitness."""
  squares = told['squares'] + jnp.exp(2 * state['log_sigma'])
  return {'fitness': fitness, 'squares': squares}
