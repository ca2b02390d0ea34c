"""A server that searches by what its clients have found (FedBPT).

FedBPT (arXiv 2310.01467) as its public code does it: the means at which clients
end are the points of one generation of the server's own CMA-ES, all of them its
parents, ranked by what each client says that its mean is worth. Its defects are
mended: clients draw by themselves in each round, and sigma has no floor.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedms_jax.core import cma
from fedms_jax.core.contract import Context, Message, Received, Sender, Server
from fedms_jax.core.evolution import SEARCH, TOLD
from fedms_jax.core.types import Roles, Tree
from fedms_jax.server.averaged import as_trained

PATHS = ('path_sigma', 'path_covariance', 'generation')


def ranked(shape: cma.Shape, parents: int) -> Server:
  """The server's search.

  shape: of the search. parents: mu of the clients. With sigma_ki the step size
  of client k in its generation i, that of the server's generation is the root
  of (sum over k and i of sigma_ki^2) / (K mu), and the clients' is multiplied
  by what that generation makes of it. The weights of K parents
  are log(K + 1/2) - log(rank), normalized: ours.
  """

  def init(key, roles: Roles) -> Tree:
    del key
    return {name: jnp.zeros_like(roles.shared[SEARCH][name]) for name in PATHS}

  def send(before, message: Message, weight, sender: Sender) -> Message:
    return as_trained(before, message, weight, sender)

  def step(roles: Roles, memory: Tree, received: Received, context: Context):
    del context
    before, told = roles.shared[SEARCH], received.extras[TOLD]
    held = received.cover[SEARCH] > 0
    count = jnp.sum(held.astype(jnp.float32))
    heard = jnp.maximum(count, 1.0)
    squares = jnp.sum(jnp.where(held, told['squares'], 0.0))
    log_sigma = 0.5 * jnp.log(jnp.maximum(squares, 1e-30) / heard / parents)
    state = before | memory | {'log_sigma': log_sigma}
    places, share = _ranking(held, told['fitness'], heard)
    means = received.update[SEARCH]['mean'][places]
    steps = (means - before['mean'][None]) / jnp.exp(log_sigma)
    # What was not heard of has no weight, but may not be finite.
    steps = jnp.where(share[:, None] > 0, steps, 0.0)
    after = cma.tell(shape, state, steps, share, cma.root(shape, state))
    grown = after['log_sigma'] - log_sigma
    after = after | {'log_sigma': before['log_sigma'] + grown}
    after = after | {'generation': before['generation']}
    paths = {name: after[name] for name in PATHS[:2]}
    paths['generation'] = memory['generation'] + 1
    search = after | {name: before[name] for name in PATHS}
    somebody = count > 0
    search, memory = jax.tree.map(
      lambda x, y: jnp.where(somebody, x, y), (search, paths), (before, memory)
    )
    return roles._replace(shared={SEARCH: search}), memory, {}

  return Server(init, send, 'stack', step)


def _ranking(held, fitness, heard) -> tuple[Any, Any]:
  """(places of clients from the best, their weights [K]); weight 0 of those
  that did not report."""
  places = cma.order(jnp.where(held, fitness, jnp.inf))
  rank = jnp.arange(1, len(fitness) + 1, dtype=jnp.float32)
  raw = jnp.log(heard + 0.5) - jnp.log(rank)
  raw = jnp.where(rank <= heard, raw, 0.0)
  return places, raw / jnp.sum(raw)
