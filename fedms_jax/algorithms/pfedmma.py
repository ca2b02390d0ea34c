"""pFedMMA (arXiv 2507.05394): adapters of both towers of a CLIP that meet in a
layer that all share.

Beside each of the last blocks of either tower lies

  x -> scale * up(relu(meet(relu(down(x))))),

which is added to what comes out of the block. `down` and `up` belong to one
tower and stay with a client; `meet`, small and square, is one for the adapters
of the same height in both towers, and it alone is sent and averaged. All train
at once.

What is ours: `up` begins at zero, so that the start is the model as it is (the
paper's adapters, those of MMA, begin small by a scale of 0.001); blocks are
counted from the output, since towers may differ in depth; and texts are the
names of the classes, behind the words that a prompt begins with.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import adapted, frozen_backbone
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.frozen_backbone import Form
from fedms_jax.core.activation import prefix
from fedms_jax.core.contract import Algorithm, Prediction
from fedms_jax.core.types import Backbone, Batch, Passes, Roles, Tree
from fedms_jax.models.beside import Beside, last
from fedms_jax.models.family import Prompted


class Choice(NamedTuple):
  """blocks: of each tower, from the output, that have an adapter. width: of
  what is in the middle. scale: of what is added."""

  blocks: int
  width: int
  scale: float


def pfedmma(setting: Setting, prompted: Prompted, choice: Choice) -> Algorithm:
  """pFedMMA of a model with class prompts.

  Shared is 'meet', [blocks, width, width] with a bias; personal are 'image' and
  'text', each {'down', 'up'}. Predicts by a client's own adapters ('local').
  What is shared is no model by itself.
  """
  backbone = setting.backbone
  plain = backbone.blocks - choice.blocks

  def column(base: Tree, inputs):
    spans = prefix(base['blocks'], None, plain)
    mask = backbone.mask(inputs)
    return backbone.run(spans, backbone.embed(base, inputs), mask)

  def logits(frozen: Tree, parts: Tree, batch: Batch):
    base, text = frozen['base'], frozen['base']['text']
    x = _adapted(backbone, base, _beside(parts, 'image', choice), batch)
    beside = _beside(parts, 'text', choice)
    classes = prompted.features(text, context(text), beside)
    return frozen_backbone.class_logits(setting, frozen, classes, x)

  def as_it_was(frozen: Tree, batch: Batch):
    base = frozen['base']
    nothing = Beside(choice.blocks, lambda number, x: jnp.zeros_like(x))
    x = _adapted(backbone, base, nothing, batch)
    classes = base['final']['classes']
    return frozen_backbone.class_logits(setting, frozen, classes, x)

  def begin(key, frozen: Tree) -> Roles:
    parts = fresh(key, frozen['base'], choice)
    return Roles(frozen, {'meet': parts.pop('meet')}, parts)

  def models(roles: Roles, batch: Batch) -> Prediction:
    parts = roles.shared | roles.personal
    return Prediction({'local': logits(roles.frozen, parts, batch)}, {})

  passes = Passes(trained=1, beside=_text_flops(prompted, choice))
  form = Form(
    lambda key, frozen: fresh(key, frozen['base'], choice),
    logits,
    as_it_was,
    'prefix',
    column,
    passes,
  )
  made = frozen_backbone.method(
    setting,
    form,
    'pfedmma',
    begin,
    models,
    'local',
    lambda roles: roles.personal | roles.shared,
  )
  return made._replace(
    backbone=_costed(backbone, choice),
    models=lambda roles: {'local': made.models(roles)['local']},
  )


def fresh(key, base: Tree, choice: Choice) -> Tree:
  """New adapters: {'meet', 'image': {'down', 'up'}, 'text': {'down', 'up'}}."""
  keys = iter(jax.random.split(key, 3))

  def layers(rows: int, columns: int) -> Tree:
    shape = (choice.blocks, rows, columns)
    kernel = jax.random.normal(next(keys), shape) * rows**-0.5
    return {'kernel': kernel, 'bias': jnp.zeros((choice.blocks, columns))}

  def tower(blocks: Tree) -> Tree:
    size = width_of(blocks)
    up = jnp.zeros((choice.blocks, choice.width, size))
    zeros = {'kernel': up, 'bias': jnp.zeros((choice.blocks, size))}
    return {'down': layers(size, choice.width), 'up': zeros}

  return {
    'meet': layers(choice.width, choice.width),
    'image': tower(base['blocks']),
    'text': tower(base['text']['blocks']),
  }


def width_of(blocks: Tree) -> int:
  """D of stacked blocks."""
  return blocks['norm1']['scale'].shape[-1]


def context(text: Tree):
  """What stands before the names of the classes: [T, D], T may be 0."""
  if 'words' not in text:
    return jnp.zeros((0, width_of(text['blocks'])))
  return text['stem']['word'][text['words']].astype(jnp.float32)


def _beside(parts: Tree, tower: str, choice: Choice) -> Beside:
  own, meet = parts[tower], parts['meet']

  def linear(layer: Tree, number: int, x):
    kernel, bias = layer['kernel'][number], layer['bias'][number]
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)[None, None]

  def add(number: int, x):
    y = jax.nn.relu(linear(own['down'], number, x))
    y = jax.nn.relu(linear(meet, number, y))
    return choice.scale * linear(own['up'], number, y)

  return Beside(choice.blocks, add)


def _adapted(backbone: Backbone, base: Tree, beside: Beside, batch: Batch):
  """Features of images from what enters the first block with an adapter."""
  mask = adapted.mask(backbone, batch)

  def run(spans, x):
    return backbone.run(spans, x, mask)

  blocks, x = base['blocks'], batch['prefix']
  x = last(blocks, backbone.blocks, beside, run, x)
  return backbone.features(base, x, mask)


def _adapter_flops(width: int, choice: Choice, tokens: int) -> float:
  """Forward FLOPs of the adapters of one tower."""
  each = 2 * width * choice.width + choice.width**2
  return 2.0 * tokens * choice.blocks * each


def _costed(backbone: Backbone, choice: Choice) -> Backbone:
  """The backbone in the ledger's terms, of which all blocks run forward and
  back. Here the gradient ends at the lowest adapter: what all run and what the
  last ones run back is spread evenly, and so is what the adapters cost."""
  cost, blocks = backbone.cost.whole(), backbone.blocks
  # A CLIP's width is that of its embedding, which is near enough.
  added = 3 * _adapter_flops(backbone.width, choice, cost.tokens)
  block = (blocks + choice.blocks) * cost.block + added
  return backbone._replace(
    cost=cost._replace(
      block=block / (2 * blocks),
      activation=cost.activation * choice.blocks / blocks,
    )
  )


def _text_flops(prompted: Prompted, choice: Choice):
  """FLOPs of the texts in a step: forward, and back to the lowest adapter."""

  def flops(shapes: Roles) -> tuple[float, float]:
    text = shapes.frozen['base']['text']
    classes, length = text['tokens'].shape
    first = text['words'].shape[0] if 'words' in text else 0
    total = jax.tree.leaves(text['blocks'])[0].shape[0]
    once = prompted.flops(text, first) * (1 + choice.blocks / total)
    width = width_of(text['blocks'])
    added = _adapter_flops(width, choice, classes * (first + length))
    return once + 3 * added, 0.0

  return flops
