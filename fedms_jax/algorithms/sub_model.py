"""Models whose MLPs have fewer neurons, and how they learn to be like the whole
one. See `fedpft.py`.

A neuron is a column of the first layer of an MLP with its row of the last one.
Those that a sub-model lacks are zeros in arrays of the whole size, which gives
the same numbers; the ledger counts what is left.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import adapted
from fedms_jax.core import activation, descent
from fedms_jax.core.columns import inputs
from fedms_jax.core.types import Backbone, Batch, Span, Tree


class Choice(NamedTuple):
  """share: of the neurons of an MLP that stay. ends: blocks at either end whose
  MLPs stay whole. product: weight of the products of the layers beside the
  hidden states. interval: rounds between alignments; 0: none. steps, batch,
  learning_rate: of an alignment."""

  share: float
  ends: int
  product: float
  interval: int
  steps: int
  batch: int
  learning_rate: float

  def cut(self, blocks: int) -> tuple[int, ...]:
    """The blocks whose MLPs lose neurons."""
    return tuple(range(self.ends, blocks - self.ends))

  def count(self, neurons: int) -> int:
    """How many of an MLP's neurons stay."""
    return max(1, round(self.share * neurons))


def norms(blocks: Tree):
  """L2 norm of each neuron's weights, [L, F]."""
  up, down = (blocks['mlp'][name]['kernel'] for name in ('up', 'down'))
  squares = jnp.sum(jnp.square(up), axis=1) + jnp.sum(jnp.square(down), axis=2)
  return jnp.sqrt(squares)


def kept(blocks: Tree, choice: Choice):
  """Which neurons stay: those of the largest norms, float32 [L, F]."""
  size = norms(blocks)
  layers, neurons = size.shape
  first = _rank(-size) < choice.count(neurons)
  cut = jnp.isin(jnp.arange(layers), jnp.array(choice.cut(layers)))
  return jnp.where(cut[:, None], first, True).astype(jnp.float32)


def _rank(values):
  """The place of each of [L, F] in its row in ascending order."""
  return jnp.argsort(jnp.argsort(values, axis=1), axis=1)


def at_work(rest, held):
  """The half of the neurons `held` [L, F] that rest least, float32 [L, F].
  rest: the share of their activations that are not positive, [L, F]."""
  rank = _rank(jnp.where(held > 0, rest, jnp.inf))
  half = jnp.sum(held, axis=1, keepdims=True) // 2
  return held * (rank < half)


def neurons(blocks: Tree, held) -> Tree:
  """The neurons `held` [L, F] of stacked blocks; the others are zeros."""
  mlp = blocks['mlp']
  up = {key: mlp['up'][key] for key in ('kernel', 'bias') if key in mlp['up']}
  return masked({'up': up, 'down': {'kernel': mlp['down']['kernel']}}, held)


def masked(found: Tree, held) -> Tree:
  """Neurons of which those not `held` are zeros."""
  up = {'kernel': found['up']['kernel'] * held[:, None, :]}
  if 'bias' in found['up']:
    up['bias'] = found['up']['bias'] * held
  return {
    'up': up,
    'down': {'kernel': found['down']['kernel'] * held[..., None]},
  }


def smaller(base: Tree, found: Tree, held) -> Tree:
  """The base with these neurons in place of its own."""
  found, mlp = masked(found, held), base['blocks']['mlp']
  mlp = {name: mlp[name] | found[name] for name in ('up', 'down')}
  return base | {'blocks': base['blocks'] | {'mlp': mlp}}


def hidden(backbone: Backbone, base: Tree, lora: Tree, x, tokens) -> list:
  """What comes out of each block, [B, T, D]; x: what enters the first one."""
  found = []
  for b in range(backbone.blocks):
    pair = activation.cut((base['blocks'], lora), b, b + 1)
    x = backbone.run([Span(b, b + 1, pair)], x, tokens)
    found.append(x)
  return found


def weights(batch: Batch, x, tokens):
  """What the tokens of activations [B, T, D] count, float32 [B, T]."""
  held = jnp.ones(x.shape[:2]) if tokens is None else tokens
  return batch['mask'].astype(jnp.float32)[:, None] * held.astype(jnp.float32)


def missed(
  backbone: Backbone,
  base: Tree,
  small: Tree,
  lora: Tree,
  batch: Batch,
  choice: Choice,
):
  """(how far a sub-model is from the whole one, its last hidden state).

  The mean over the cut blocks of ||h' - h||^2 / ||h||^2, h and h' being what
  comes out of the block in either model, and `product` times that of
  ||W1' W2' - W1 W2||^2 / ||W1 W2||^2. lora: stacked, which both have.
  """
  tokens = adapted.mask(backbone, batch)
  x = backbone.embed(base, inputs(batch))
  held = weights(batch, x, tokens)[..., None]
  teacher = hidden(backbone, base, lora, x, tokens)
  student = hidden(backbone, small, lora, x, tokens)
  cut = choice.cut(backbone.blocks)

  def apart(mine, wanted):
    wanted = jax.lax.stop_gradient(wanted).astype(jnp.float32)
    away = jnp.sum(jnp.square(mine.astype(jnp.float32) - wanted))
    return away / jnp.maximum(jnp.sum(jnp.square(wanted)), 1e-12)

  total = 0.0
  for b in cut:
    total += apart(held * student[b], held * teacher[b])
    total += choice.product * apart(_product(small, b), _product(base, b))
  return total / len(cut), student[-1]


def _product(base: Tree, block: int):
  """W1 W2 of an MLP, [D, D]."""
  mlp = base['blocks']['mlp']
  return mlp['up']['kernel'][block] @ mlp['down']['kernel'][block]


def aligned(
  backbone: Backbone,
  base: Tree,
  found: Tree,
  lora: Tree,
  public: Batch,
  choice: Choice,
  held,
  fixed,
) -> Tree:
  """Neurons after a step of Adam on each batch of the public rows.

  found: neurons; held: those that there are, [L, F]. fixed: those that stay as
  they are, [L, F].
  """

  def loss(found, batch):
    small = smaller(base, found, held)
    return missed(backbone, base, small, lora, batch, choice)[0]

  found, _ = descent.descended(
    loss,
    found,
    optax.adam(choice.learning_rate),
    descent.batches(public, choice.steps, choice.batch),
    lambda slope: masked(slope, held * (1 - fixed)),
  )
  return found
