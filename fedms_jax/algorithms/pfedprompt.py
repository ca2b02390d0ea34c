"""pFedPrompt (Guo et al., The Web Conference 2023): what all say in words, and
what a client has seen.

The prompt of the class names is averaged, as PromptFL's is. A client adds to
its logits what its own rows say, without anything that is learned: it keeps
the features k_j and labels y_j of some of them, attends to them by the feature
x of an input, and gets

  s x t + weight * sum_j softmax_j(sharpness * x k_j) onehot(y_j),

where t are class features and s is CLIP's scale. All features have length 1.

From the paper's abstract are the two spaces, and that the attention has no
parameters. Ours are its form (of Tip-Adapter, arXiv 2111.03930, but normed, so
that neither few rows nor a row seen twice are loud or quiet), and that prompts
are trained without it: a row would find itself among those that are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import frozen_backbone, soft_prompts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Prediction,
  Start,
)
from fedms_jax.core.types import Batch, Plan, Roles, Tree
from fedms_jax.models.contrast import unit
from fedms_jax.models.family import Prompted


class Choice(NamedTuple):
  """rows: that a client keeps, at most. weight: of what they say, in logits.
  sharpness: of the attention to them."""

  rows: int
  weight: float
  sharpness: float


def pfedprompt(
  setting: Setting,
  prompted: Prompted,
  length: int,
  choice: Choice,
  *,
  classes: int,
) -> Algorithm:
  """pFedPrompt on prompts of `length` vectors before the names of `classes`.

  Shared is 'prompt'; personal are 'keys' [rows, P] and 'labels' int32 [rows],
  -1 where there is none yet: the first rows of the client's last round.
  Predicts by the prompt ('global'), by the rows alone ('local') and by both
  ('mixture'), which users get. Before its first round a client has no rows,
  and gets the prompt's.
  """
  form = soft_prompts.of_classes(setting, prompted, length)

  def begin(key, frozen: Tree) -> Roles:
    width = frozen['base']['final']['classes'].shape[-1]
    return Roles(frozen, form.fresh(key, frozen), empty(choice.rows, width))

  def models(roles: Roles, batch: Batch) -> Prediction:
    shared = form.logits(roles.frozen, roles.shared, batch)
    seen = attended(roles.personal, batch['features'], choice, classes)
    logits = {'global': shared, 'local': seen, 'mixture': shared + seen}
    return Prediction(logits, {})

  def trained(roles: Roles, batch: Batch, start: Start):
    del start
    return form.logits(roles.frozen, roles.shared, batch), 0.0

  def masks(plan: Plan):
    return plan.active, {'keys': False, 'labels': False}

  made = frozen_backbone.method(
    setting,
    form,
    'pfedprompt',
    begin,
    models,
    'mixture',
    lambda roles: roles.personal,
    trained=trained,
    masks=masks,
  )
  return made._replace(update=_remembering(made.update))


def empty(rows: int, width: int) -> Tree:
  """A memory of `rows` features [P] that has none yet."""
  return {
    'keys': jnp.zeros((rows, width)),
    'labels': jnp.full(rows, -1, jnp.int32),
  }


def attended(memory: Tree, x, choice: Choice, classes: int):
  """What the rows of a memory say of features x [B, P]: [B, C], at most
  `choice.weight`; zeros of an empty memory."""
  held = memory['labels'] >= 0
  scores = choice.sharpness * unit(x) @ memory['keys'].T
  scores = jnp.where(held[None, :], scores, -jnp.inf)
  weights = jax.nn.softmax(jnp.where(jnp.any(held), scores, 0.0), axis=-1)
  # An unknown label is no class, and its row is zero.
  return choice.weight * weights @ jax.nn.one_hot(memory['labels'], classes)


def remembered(memory: Tree, x, labels, real) -> Tree:
  """The memory with rows of a batch (features x [B, P], labels [B], those that
  are `real` [B]) behind those that it has, as long as there is room."""
  first = jnp.sum(memory['labels'] >= 0)
  size = len(memory['labels'])
  places = jnp.where(real, first + jnp.cumsum(real) - 1, size)
  return {
    'keys': memory['keys'].at[places].set(unit(x), mode='drop'),
    'labels': memory['labels'].at[places].set(labels, mode='drop'),
  }


def _remembering(update: ClientUpdate) -> ClientUpdate:
  """Keeps the first rows that a client trains on in a round."""

  def begin(start: Start):
    none = empty(*start.roles.personal['keys'].shape)
    return {'model': update.begin(start), 'memory': none}

  def step(carry, start: Start, batch: Batch, key):
    model, sums = update.step(carry['model'], start, batch, key)
    memory = remembered(
      carry['memory'], batch['features'], batch['labels'], batch['mask']
    )
    return {'model': model, 'memory': memory}, sums

  def finish(carry, start: Start):
    message, _ = update.finish(carry['model'], start)
    return message, carry['memory']

  return ClientUpdate(begin, step, finish, update.sums)
