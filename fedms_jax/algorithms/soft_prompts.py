"""Soft prompts of a frozen model, shared and personal: PromptFL, PromptFolio.

A prompt is the beginning of the names of classes, where the model has a text
tower, or else of its input. Methods are the same for both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.adapters import prompt
from fedms_jax.algorithms import adapted, frozen_backbone
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.frozen_backbone import Form
from fedms_jax.core.contract import Algorithm, Prediction
from fedms_jax.core.types import Batch, Passes, Roles, Span, Tree
from fedms_jax.models.family import Prompted


def of_classes(setting: Setting, prompted: Prompted, length: int) -> Form:
  """{'prompt'} of `length` vectors before the names of the classes.

  The classes' features are made anew in each step. The text tower is
  frozen['base']['text'], see `family.Prompted`; it may have 'words', tokens
  that a prompt then begins as.
  """

  def fresh(key, frozen: Tree) -> Tree:
    text = frozen['base'].get('text')
    if text is None:
      raise ValueError(
        "soft prompts of class names need CLIP's text tower as "
        "frozen['base']['text'], and it is not there. Add what "
        '`foundation.text_tower` gives to the base.'
      )
    if 'words' in text:
      words = text['stem']['word'][text['words']]
      return {'prompt': words.astype(jnp.float32)}
    return {'prompt': prompt.init(key, length, prompted.width)}

  def logits(frozen: Tree, parts: Tree, batch: Batch):
    classes = prompted.features(frozen['base']['text'], parts['prompt'])
    return frozen_backbone.class_logits(
      setting, frozen, classes, batch['features']
    )

  form = frozen_backbone.on_features(setting, fresh, logits)
  return form._replace(passes=with_text(form.passes, prompted, 2))


def with_text(
  passes: Passes, prompted: Prompted, step: int, once: int = 0
) -> Passes:
  """The passes with so many passes of the text tower in a step, and in a round,
  over the names of all classes; one back to the prompt counts as one more."""

  def flops(shapes: Roles) -> tuple[float, float]:
    length = shapes.shared['prompt'].shape[0]
    one = prompted.flops(shapes.frozen['base']['text'], length)
    return step * one, once * one

  return passes._replace(beside=flops)


def of_inputs(setting: Setting, length: int) -> Form:
  """{'prompt'} of `length` vectors before the tokens or patches of an input,
  and the 'head' where the model has one that trains.

  What the stem makes of an input is derived once. Features are read from the
  tokens behind the prompt. A fresh prompt is no neutral one: a block norms its
  vectors to the size of all others, so that a long one costs accuracy before it
  is trained.
  """
  backbone = setting.backbone

  def fresh(key, frozen: Tree) -> Tree:
    width = frozen['base']['blocks']['norm1']['scale'].shape[-1]
    head = frozen['start']['head']
    made = {'prompt': prompt.init(key, length, width)}
    return made | {'head': head} if jax.tree.leaves(head) else made

  def logits(frozen: Tree, parts: Tree, batch: Batch):
    base, mask = frozen['base'], adapted.mask(backbone, batch)
    x, held, skipped = batch['prefix'], mask, 0
    if 'prompt' in parts:
      x, held = prompt.prepend(parts['prompt'], x, mask)
      skipped = len(parts['prompt'])
    blocks = Span(0, backbone.blocks, (base['blocks'], None))
    x = backbone.run([blocks], x, held)[:, skipped:]
    x = backbone.features(base, x, mask)
    return adapted.logits(backbone, base, parts.get('head', {}), x)

  def plain(frozen: Tree, batch: Batch):
    return logits(frozen, frozen['start'], batch)

  passes = Passes(trained=1, frozen=0)
  return Form(fresh, logits, plain, 'prefix', backbone.embed, passes)


def promptfl(setting: Setting, form: Form) -> Algorithm:
  """PromptFL (arXiv 2208.11625): the prompt is averaged."""
  return frozen_backbone.averaged(setting, form, 'promptfl')


def promptfolio(setting: Setting, form: Form, local: float) -> Algorithm:
  """PromptFolio (arXiv 2409.19610): a shared prompt, and an own one of each
  client.

  Their class features, each of length 1, are mixed with the fixed weights 1 -
  `local` and `local`; logits are linear in them, and so are mixed alike.
  """

  def begin(key, frozen: Tree) -> Roles:
    own = form.fresh(jax.random.fold_in(key, 1), frozen)
    return Roles(frozen, form.fresh(key, frozen), own)

  def models(roles: Roles, batch: Batch) -> Prediction:
    shared, own = (
      form.logits(roles.frozen, parts, batch)
      for parts in (roles.shared, roles.personal)
    )
    mixture = (1 - local) * shared + local * own
    logits = {'global': shared, 'local': own, 'mixture': mixture}
    return Prediction(logits, {})

  made = frozen_backbone.method(
    setting,
    form,
    'promptfolio',
    begin,
    models,
    'mixture',
    lambda roles: roles.personal,
  )
  return made._replace(passes=_twice(form.passes))


def _twice(passes: Passes) -> Passes:
  """The passes of two models in each step."""

  def both(shapes: Roles) -> tuple[float, float]:
    step, once = passes.beside(shapes) if passes.beside else (0.0, 0.0)
    return 2 * step, 2 * once

  return passes._replace(
    trained=2 * passes.trained, beside=both if passes.beside else None
  )
