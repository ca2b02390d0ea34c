"""FoolsGold: clients that have always pulled alike count little.

Sybils share an aim, honest clients have data of their own. So whoever has, over
all rounds, sent almost what another one has sent is taken for one of many.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.contract import Message, Received
from fedms_jax.core.shapes import tail
from fedms_jax.core.types import Tree
from fedms_jax.server import robust, robust_means
from fedms_jax.server.averaged import Aggregator, Past

_SENDER = 'sender'  # the extra that says whose a message is
_MOST = 2**30  # bytes that may be remembered


def foolsgold(clients: int) -> Aggregator:
  """FoolsGold (arXiv 1808.04866, alg. 1) among so many clients, with kappa = 1:
  the mean of the changes of a round, weighed by `trust` in what each client
  has changed in all rounds, itself included.

  Cosines are of all that is shared, without the paper's weights of features.
  The paper adds weighed changes up where this divides by the weights, so that
  steps keep their length; of blocks the mean is over their holders. Both are
  ours. The memory is `clients` times what is shared.
  """

  def init(shared: Tree) -> Tree:
    _check_room(clients, shared)
    return jax.tree.map(
      lambda x: jnp.zeros((clients, *x.shape), jnp.float32), shared
    )

  def send(before, message: Message, weight, sender) -> Message:
    found = robust.change(before, message, weight, sender)
    mark = {_SENDER: {'id': jnp.asarray(sender.id, jnp.uint32)}}
    return found._replace(extras=found.extras | mark)

  def merge(before, received: Received, past: Tree) -> tuple[Tree, Tree]:
    robust.check(received)
    held = robust_means.holders(received)
    there = robust_means.members(held) > 0
    ids = received.extras[_SENDER]['id'].astype(jnp.int32)

    def added(key: str, part: Tree) -> Tree:
      return jax.tree.map(
        lambda had, x: had.at[ids].add(x * tail(held[key], x)),
        past[key],
        part,
      )

    now = past | {k: added(k, part) for k, part in received.update.items()}
    mine = jax.tree.map(lambda x: x[ids], now)
    weights = trust(_cosines(mine), there)
    step = robust_means.mean(received.update, held, weights)
    return tree.add(before, step), now

  def first(before, received: Received) -> Tree:
    return merge(before, received, init(before))[0]

  return Aggregator(send, 'stack', first, past=Past(init, merge))


def _check_room(clients: int, shared: Tree) -> None:
  size = 4 * clients * sum(x.size for x in jax.tree.leaves(shared))
  if size > _MOST:
    raise ValueError(
      f'`num_clients`={clients} would have FoolsGold remember '
      f'{size / 2**30:.1f} GiB; allowed: 1 GiB, of at most '
      f'{clients * _MOST // size}. Lower it, or take another aggregator.'
    )


def trust(cosines, there):
  """What clients count, [K] in [0, 1]. cosines: [K, K]; there: bool [K].

  With v_i the largest cosine of i to another one, a cosine of i to a j with
  v_j > v_i is scaled by v_i / v_j, so that who is like a sybil by chance is
  pardoned; what is left of 1 under the largest one, over the most of all, goes
  through a logit. Where all pull alike, nobody counts.
  """
  both = there[:, None] & there[None] & ~jnp.eye(len(there), dtype=bool)
  alike = jnp.where(both, cosines, 0.0)
  most = jnp.max(alike, axis=1)
  larger = most[None] > most[:, None]
  ratio = most[:, None] / jnp.where(larger, most[None], 1.0)
  alike = jnp.where(larger, alike * ratio, alike)
  left = jnp.where(there, jnp.clip(1 - jnp.max(alike, axis=1), 0.0, 1.0), 0.0)
  scaled = left / jnp.maximum(jnp.max(left), 1e-6)
  scaled = jnp.clip(scaled, 1e-6, 0.99)  # as their code has it: a finite logit
  found = jnp.clip(jnp.log(scaled / (1 - scaled)) + 0.5, 0.0, 1.0)
  return jnp.where(there, found, 0.0)


def _cosines(past: Tree):
  """Cosines of what two clients have changed [K, K]; 0 of nothing."""
  leaves = jax.tree.leaves(past)
  flat = jnp.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)
  norm = jnp.sqrt(jnp.sum(jnp.square(flat), axis=1, keepdims=True))
  unit = flat / jnp.maximum(norm, 1e-30)
  return jnp.matmul(unit, unit.T, precision='highest')
