"""Methods whose server sees every client's A and B: FLoRA, FedEx, FlexLoRA,
HetLoRA.

Messages stay apart on a leading axis K ('stack'), as the factors that they are,
so that the server can sum their products exactly (`adapters/lora_products.py`).
Shares p_k are weights over their sum, per block over the clients that held it.
Where ranks are mixed, see `ranks.py` for what alpha / R means.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora, lora_products
from fedms_jax.algorithms import ranks
from fedms_jax.algorithms.adapted import Setting, fresh, one_model, together
from fedms_jax.algorithms.ranks import Pruning, RankOf
from fedms_jax.core import tree
from fedms_jax.core.activation import at_rest
from fedms_jax.core.contract import Algorithm, Context, Received
from fedms_jax.core.types import ActiveSet, Plan, Roles, Tree
from fedms_jax.server.averaged import (
  Aggregator,
  as_trained,
  averaged,
  then,
)
from fedms_jax.server.measures import RESIDUAL


def flora(
  setting: Setting,
  *,
  rank_of: RankOf | None = None,
  adapter: Tree | None = None,
) -> Algorithm:
  """FLoRA (arXiv 2409.05976): stacked, [p_k A_k] [B_k] is sum p_k A_k B_k.

  The sum, scaled, is added to a dense residual beside the frozen kernels, and
  the LoRA of these blocks starts again: A drawn from the round's key, B = 0.
  A server optimizer acts on the head alone.
  """

  def merge(before, received: Received) -> Tree:
    share = lora_products.shares(received.cover['head'])
    head = lora_products.mean(received.update['head'], share)
    return before | {'head': head}

  def fold(roles: Roles, received: Received, context: Context) -> Roles:
    base, old = roles.frozen['base'], roles.shared['blocks']
    weight = received.cover['blocks']
    share = lora_products.shares(weight)
    added = lora_products.products(received.update['blocks'], share)
    new = setting.lora.init(context.key, base['blocks'])
    held = jnp.max(weight, axis=0)[:, None, None] > 0
    blocks = jax.tree.map(lambda x, y: jnp.where(held, x, y), new, old)
    roles = roles._replace(shared=roles.shared | {'blocks': blocks})
    return _add(roles, added, setting.lora.scale)

  server = then(averaged(_apart(setting, merge), setting.outer), fold)
  method = _beside_dense(setting, 'flora', server, adapter)
  traffic = _traffic(setting.lora.rank, factors_down=False)
  return _ranked(method._replace(traffic=traffic), setting, rank_of)


def fedex_lora(setting: Setting, *, adapter: Tree | None = None) -> Algorithm:
  """FedEx-LoRA (arXiv 2410.09432): A and B are averaged, and what that misses,
  scale * (sum p_k A_k B_k - A B), is added to a dense residual beside the
  frozen kernels."""

  def merge(before, received: Received) -> Tree:
    update, cover = received.update, received.cover
    return {
      key: lora_products.mean(update[key], lora_products.shares(cover[key]))
      for key in before
    }

  def fold(roles: Roles, received: Received, context: Context) -> Roles:
    del context
    share = lora_products.shares(received.cover['blocks'])
    factors = received.update['blocks']
    kept = lora.products(lora_products.mean(factors, share))
    missed = tree.subtract(lora_products.products(factors, share), kept)
    return _add(roles, missed, setting.lora.scale)

  server = then(averaged(_apart(setting, merge), setting.outer), fold)
  method = _beside_dense(setting, 'fedex_lora', server, adapter)
  return method._replace(traffic=_traffic(setting.lora.rank))


def flexlora(
  setting: Setting,
  *,
  rank_of: RankOf | None = None,
  adapter: Tree | None = None,
) -> Algorithm:
  """FlexLoRA (arXiv 2402.11505): A B is the best approximation of rank R of
  sum p_k A_k B_k, and a client of rank r begins with the best of rank r."""

  def merge(before, received: Received) -> Tree:
    del before
    update, cover = received.update, received.cover
    share = lora_products.shares(cover['blocks'])
    blocks = lora_products.best(update['blocks'], share, setting.lora.rank)
    share = lora_products.shares(cover['head'])
    return {'blocks': blocks, 'head': lora_products.mean(update['head'], share)}

  server = averaged(_apart(setting, merge), setting.outer)
  method = _plain(setting, 'flexlora', server, adapter)
  method = method._replace(traffic=_traffic(setting.lora.rank))
  return _ranked(method, setting, rank_of)


def hetlora(
  setting: Setting,
  *,
  rank_of: RankOf | None = None,
  pruning: Pruning | None = None,
  adapter: Tree | None = None,
) -> Algorithm:
  """HetLoRA (arXiv 2401.06432): truncate, train, prune, fill up with zeros,
  average.

  A client's share of a block is its ||A_k B_k||_F over the sum of those, over
  all targets of the block; of the head, its number of rows. The zeros count,
  as in the paper; only columns that nobody had in this round stay as they
  were. By `pruning` a client gives up columns over time; the metrics of a
  round then have 'mean_rank', over its clients. The traffic, which follows
  from what is static, is that of the ranks before anything is pruned.
  """

  def shares(received: Received):
    # As long as no B has moved, all are alike.
    norms = lora_products.norms(received.update['blocks']) + 1e-12
    held = received.cover['blocks'] > 0
    return lora_products.shares(jnp.where(held, norms, 0.0))

  def merge(before, received: Received) -> Tree:
    update, cover = received.update, received.cover
    blocks = lora_products.mean(update['blocks'], shares(received))
    most = jnp.max(_ranks_held(received), axis=0)
    real = jnp.arange(setting.lora.rank)[None] < most[:, None]  # [L, R]

    def kept(path, new, old):
      here = real[:, None, :] if path[-1].key == 'a' else real[:, :, None]
      return jnp.where(here, new, old)

    blocks = jax.tree_util.tree_map_with_path(kept, blocks, before['blocks'])
    share = lora_products.shares(cover['head'])
    return {'blocks': blocks, 'head': lora_products.mean(update['head'], share)}

  aggregator = _apart(setting, merge, shares)
  rank_of = rank_of or (lambda client: setting.lora.rank)
  if pruning is not None:
    method = _pruned(setting, aggregator, pruning, adapter)
  else:
    server = averaged(aggregator, setting.outer)
    method = _plain(setting, 'hetlora', server, adapter)
  method = method._replace(traffic=_traffic(setting.lora.rank))
  return _ranked(method, setting, rank_of)


def _pruned(
  setting: Setting, aggregator: Aggregator, pruning: Pruning, adapter
) -> Algorithm:
  """HetLoRA whose clients prune their ranks, for `_ranked`."""

  def measure(before, received: Received):
    each = jnp.max(_ranks_held(received), axis=1)
    mean = jnp.sum(each) / jnp.maximum(jnp.sum(each > 0), 1)
    found = aggregator.measure(before, received) if aggregator.measure else {}
    return found | {'mean_rank': mean}

  server = averaged(aggregator._replace(measure=measure), setting.outer)
  plain = _plain(setting, 'hetlora', server, adapter)

  def begin(key, before: Roles) -> Roles:
    return plain.begin(key, before)._replace(personal={'pruned': jnp.int32(0)})

  def masks(plan: Plan):
    return plan.active, {'pruned': False}

  method = one_model(
    setting,
    'hetlora',
    begin,
    lambda roles: roles.shared,
    masks=masks,
    penalty=pruning.penalty,
    server=server,
  )
  return method._replace(update=pruning.around(method.update))


def _ranks_held(received: Received):
  """Ranks of the blocks that clients trained [K, L], 0 for others."""
  held = received.cover['blocks'] > 0
  return jnp.where(held, received.extras['rank']['blocks'], 0)


def _plain(setting: Setting, name: str, server, adapter) -> Algorithm:
  """All of the LoRA and the head are shared."""

  def begin(key, before: Roles) -> Roles:
    shared = fresh(setting, key, before, adapter)
    frozen = {'base': before.frozen['base'], 'start': shared}
    return Roles(frozen, shared, {})

  model = operator.attrgetter('shared')
  return one_model(setting, name, begin, model, server=server)


def _beside_dense(setting: Setting, name: str, server, adapter) -> Algorithm:
  """`_plain`, with a dense residual [L, d_in, d_out] for each target."""
  plain = _plain(setting, name, server, adapter)
  count = setting.backbone.blocks

  def begin(key, before: Roles) -> Roles:
    roles = plain.begin(key, before)
    found = lora.kernels(before.frozen['base']['blocks'])
    none = lora.dense({t: jnp.zeros(found[t]) for t in setting.lora.targets})
    return roles._replace(frozen=roles.frozen | {'delta_blocks': none})

  def model(roles: Roles) -> Tree:
    delta = at_rest(roles.frozen['delta_blocks'], count)
    blocks = together(roles.shared['blocks'], delta)
    return {'blocks': blocks, 'head': roles.shared['head']}

  return one_model(setting, name, begin, model, server=server)


def _add(roles: Roles, updates: dict[str, jax.Array], scale: float) -> Roles:
  """The roles with scaled updates in their dense residual."""
  delta = roles.frozen['delta_blocks']
  delta = tree.add(delta, tree.scale(lora.dense(updates), scale))
  return roles._replace(frozen=roles.frozen | {'delta_blocks': delta})


def _ranked(
  method: Algorithm, setting: Setting, rank_of: RankOf | None
) -> Algorithm:
  """The method at ranks of clients; None: all have R."""
  if rank_of is None:
    return method
  update = ranks.truncated(method.update, setting.lora.rank)
  return method._replace(update=update, variant=ranks.variant(rank_of))


def _apart(
  setting: Setting, merge: Callable, shares: Callable | None = None
) -> Aggregator:
  """Clients send what they have trained. The residual that is measured is that
  of averaged factors, whatever `merge` does instead.

  shares: received -> p [K, L]; None: by the weights.
  """

  def measure(before, received: Received):
    del before
    by_weight = lora_products.shares(received.cover['blocks'])
    share = shares(received) if shares else by_weight
    missed = lora_products.residual(received.update['blocks'], share)
    return {RESIDUAL: setting.lora.scale * missed}

  return Aggregator(as_trained, 'stack', merge, measure)


def _traffic(rank: int, factors_down: bool = True) -> Callable:
  """Bytes of a client: LoRA of its own rank and the head go up. Down come its
  factors, unless the method restarts them, and what is new of a dense
  residual: the cohort's factors of one round at rank R, or the residual of
  the blocks that have been active, whichever is smaller."""

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    blocks, active = len(plan.active), sum(plan.active)
    held = sum(ever)
    each = tree.nbytes(shapes.shared['blocks']) / blocks
    own = each * (plan.variant or rank) / rank
    down = up = float(tree.nbytes(shapes.shared['head']))
    if factors_down:
      down += own * held
    if 'delta_blocks' in shapes.frozen:
      delta = tree.nbytes(shapes.frozen['delta_blocks']) / blocks
      down += min(each * active * cohort, delta * held)
    return up + own * active, down

  return traffic
