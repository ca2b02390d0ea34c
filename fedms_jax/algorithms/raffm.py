"""RaFFM (arXiv 2310.00247): clients train parts of the model's width.

Channels of an MLP, and within each head of its queries and keys, have an order:
the larger the L1 norm of their weights, the more salient; those of queries and
keys share one, by the mean of both norms. Putting them into that order, queries
and keys alike, changes no logit (`ordered`), and the first ones are a narrower
model. A client trains one of the widths, of all weights; a channel is averaged
over those who had it.

The paper's code divides every sum by the number of participants, so that what
few of them have shrinks; here it is divided by the holders. Ours: a width is an
even draw for each client and round, the same in all blocks; the order follows
from what the server has at the start of a round; nothing is moved: channels
that a client lacks are zeros, to which no gradient leads; and the residual
stream stays as wide as it is, as in the paper's default space. In the ledger a
device's memory is stated as of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import general, sub_model
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import tree
from fedms_jax.core.contract import Algorithm, ClientUpdate, Start
from fedms_jax.core.costs import BackboneCost
from fedms_jax.core.types import ActiveSet, Batch, Plan, Roles, Tree

_PAIR = ('q', 'k')


class Width(NamedTuple):
  """mlp: share of the neurons of an MLP. head: share of the channels of the
  queries and keys of a head."""

  mlp: float = 1.0
  head: float = 1.0


class Shape(NamedTuple):
  """Numbers of a block: heads, channels of each, neurons of the MLP, D."""

  heads: int
  channels: int
  neurons: int
  width: int

  def lost(self, width: Width) -> tuple[int, int]:
    """(neurons of the MLP, channels of each head) that such a part lacks."""
    mlp = self.neurons - max(1, round(width.mlp * self.neurons))
    return mlp, self.channels - max(1, round(width.head * self.channels))

  def fewer(self, width: Width) -> int:
    """Weights, without biases, that a block of such a part lacks."""
    mlp, channels = self.lost(width)
    return 2 * self.width * (mlp + self.heads * channels)


def shape(blocks: Tree, heads: int) -> Shape:
  """Of stacked blocks, arrays or shapes."""
  _, width, whole = blocks['attn']['q']['kernel'].shape
  neurons = blocks['mlp']['up']['kernel'].shape[2]
  return Shape(heads, whole // heads, neurons, width)


def salience(blocks: Tree, heads: int):
  """(of neurons [L, F], of channels of queries and keys [L, H, Dh])."""

  def norms(kernel):
    return jnp.sum(jnp.abs(kernel), axis=1)

  q, k = (norms(blocks['attn'][name]['kernel']) for name in _PAIR)
  pair = (q + k) / 2
  return (
    norms(blocks['mlp']['up']['kernel']),
    pair.reshape(len(pair), heads, -1),
  )


def held(blocks: Tree, heads: int, width: Width):
  """Which channels such a part has, the most salient ones: float32
  ([L, F], [L, H Dh])."""
  found = shape(blocks, heads)
  few, less = found.lost(width)
  neurons, channels = salience(blocks, heads)

  def first(size, count):
    rank = jnp.argsort(jnp.argsort(-size, axis=-1), axis=-1)
    return (rank < count).astype(jnp.float32)

  pair = first(channels, found.channels - less)
  pair = pair.reshape(len(pair), heads * found.channels)
  return first(neurons, found.neurons - few), pair


def part(blocks: Tree, masks) -> Tree:
  """The blocks without the channels that are not held."""
  neurons, channels = masks
  attn = dict(blocks['attn'])
  for name in _PAIR:
    layer = dict(attn[name])
    layer['kernel'] = layer['kernel'] * channels[:, None, :]
    if 'bias' in layer:
      layer['bias'] = layer['bias'] * channels
    attn[name] = layer
  base = {'blocks': blocks | {'attn': attn}}
  mine = sub_model.neurons(blocks, neurons)
  return sub_model.smaller(base, mine, neurons)['blocks']


def cover(update: Tree, masks) -> Tree:
  """Who holds what of the blocks `update` [d, ...]: ones, and the masks."""
  neurons, channels = masks
  found = jax.tree.map(lambda x: jnp.ones(len(x)), update)
  for name in _PAIR:
    layer = {'kernel': channels[:, None, :], 'bias': channels}
    found['attn'][name] = {k: layer[k] for k in found['attn'][name]}
  up = {'kernel': neurons[:, None, :], 'bias': neurons}
  found['mlp']['up'] = {k: up[k] for k in found['mlp']['up']}
  found['mlp']['down'] = found['mlp']['down'] | {'kernel': neurons}
  return found


def ordered(blocks: Tree, heads: int) -> Tree:
  """The blocks with their channels by salience, the most salient first."""
  neurons, channels = (
    jnp.argsort(-size, axis=-1, stable=True) for size in salience(blocks, heads)
  )
  each = channels.shape[-1]
  offset = (jnp.arange(heads) * each)[None, :, None]
  pair = (channels + offset).reshape(len(channels), heads * each)

  def taken(layer: Tree, order) -> Tree:
    out = {'kernel': jnp.take_along_axis(layer['kernel'], order[:, None], 2)}
    if 'bias' in layer:
      out['bias'] = jnp.take_along_axis(layer['bias'], order, 1)
    return layer | out

  attn, mlp = blocks['attn'], blocks['mlp']
  attn = attn | {name: taken(attn[name], pair) for name in _PAIR}
  down = jnp.take_along_axis(mlp['down']['kernel'], neurons[:, :, None], 1)
  mlp = mlp | {
    'up': taken(mlp['up'], neurons),
    'down': mlp['down'] | {'kernel': down},
  }
  return blocks | {'attn': attn, 'mlp': mlp}


def raffm(
  setting: Setting, heads: int, width_of: Callable[[int, int], Width]
) -> Algorithm:
  """FedAvg of parts of the whole model. heads: of a block's attention.
  width_of: (round, client) -> the part that it trains."""
  plain = general.fedavg(setting)
  backbone = plain.backbone
  shapes = jax.eval_shape(backbone.init, jax.random.key(0))['blocks']
  numbers = shape(shapes, heads)

  def cost(plan: Plan) -> BackboneCost:
    found = backbone.cost
    if plan.variant is None:
      return found
    spared = 2.0 * found.tokens * numbers.fewer(plan.variant)
    return found._replace(block=found.block - spared)

  def traffic(shapes: Roles, plan: Plan, ever: ActiveSet, cohort: int):
    """Bytes of the weights that the part has, both ways."""
    del cohort
    fewer = 4.0 * numbers.fewer(plan.variant or Width())
    up, down = (
      tree.nbytes_of(shapes.shared, active) - fewer * sum(active)
      for active in (plan.active, ever)
    )
    return up, down

  return plain._replace(
    name='raffm',
    update=_parted(plain.update, heads),
    variant=width_of,
    cost=cost,
    traffic=traffic,
  )


def _parted(update: ClientUpdate, heads: int) -> ClientUpdate:
  """Local training of the part that the plan names."""

  def masks(start: Start):
    blocks = start.roles.shared['blocks']
    return held(blocks, heads, start.plan.variant or Width())

  def mine(start: Start) -> Start:
    if start.plan.variant is None:
      return start
    shared = start.roles.shared
    blocks = part(shared['blocks'], masks(start))
    return start.at(start.roles._replace(shared=shared | {'blocks': blocks}))

  def begin(start: Start):
    return update.begin(mine(start))

  def step(carry, start: Start, batch: Batch, key):
    return update.step(carry, mine(start), batch, key)

  def finish(carry, start: Start):
    message, personal = update.finish(carry, mine(start))
    rows = tree.indices(start.plan.active)
    some = tuple(x[rows] for x in masks(start))
    found = {
      key: cover(value, some) if key == 'blocks' else jnp.float32(1)
      for key, value in message.update.items()
    }
    return message._replace(cover=found), personal

  return ClientUpdate(begin, step, finish, update.sums)
