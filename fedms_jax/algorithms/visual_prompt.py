"""A visual prompt: an image that is added to every image (arXiv 2203.17274).

It stands before the whole model, so that a model of which outputs alone are
known can be prompted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import adapted, frozen_backbone
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.frozen_backbone import Form
from fedms_jax.core.contract import Algorithm
from fedms_jax.core.types import Batch, Passes, Plan, Roles, Tree
from fedms_jax.models import pretrained


def of_pixels(setting: Setting, side: int, strength: float) -> Form:
  """{'pixels' [side, side, C]}, and the 'head' where the model has one that
  trains.

  An image x in [0, 255] becomes x + 255 strength tanh(pixels), cut to [0, 255],
  with the pixels stretched to its size.
  """
  backbone = setting.backbone

  def fresh(key, frozen: Tree) -> Tree:
    del key
    head = frozen['start']['head']
    channels = frozen['base']['stem']['kernel'].shape[2]
    made = {'pixels': jnp.zeros((side, side, channels))}
    return made | {'head': head} if jax.tree.leaves(head) else made

  def logits(frozen: Tree, parts: Tree, batch: Batch):
    x = batch['inputs']
    if 'pixels' in parts:
      pixels = parts['pixels']
      size = (*x.shape[1:3], pixels.shape[-1])
      added = (
        255 * strength * jnp.tanh(jax.image.resize(pixels, size, 'linear'))
      )
      x = jnp.clip(x.astype(jnp.float32) + added[None], 0.0, 255.0)
    x = pretrained.encode(backbone, frozen['base'], x)
    return adapted.logits(backbone, frozen['base'], parts.get('head', {}), x)

  def plain(frozen: Tree, batch: Batch):
    return logits(frozen, frozen['start'], batch)

  passes = Passes(trained=1, frozen=0)
  return Form(fresh, logits, plain, 'inputs', lambda base, x: x, passes)


def prompted(setting: Setting, form: Form) -> Algorithm:
  """FedAvg of a visual prompt. No column is derived of what it changes."""
  made = frozen_backbone.averaged(setting, form, 'visual_prompt')

  def nothing(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    del roles, batch, plan
    return {}

  return made._replace(columns=nothing, derived=())


def gains(
  rate: float, offset: float, decay: float, momentum: float
) -> optax.GradientTransformation:
  """The gains of BlackVIP's SPSA-GC (arXiv 2303.14773): with s the step of the
  run from 1, m <- b m + g, then w <- w - rate / (s + offset)^decay (g + b m).

  It takes the clock, as `server.optimizers.following` does.
  """

  def scaled(updates, state, params=None, **extra):
    del params
    step = jnp.asarray(extra['start'].moment.clock, jnp.float32) + 1
    gain = rate / (step + offset) ** decay
    return jax.tree.map(lambda u: -gain * u, updates), state

  return optax.chain(
    optax.trace(decay=momentum, nesterov=True),
    optax.GradientTransformationExtraArgs(
      lambda params: optax.EmptyState(), scaled
    ),
  )
