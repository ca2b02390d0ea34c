"""FedOTP (arXiv 2403.00041): a shared and an own prompt, each of which finds
the patches of an image that it is about.

The features of M patches and those of a class by E prompts (here two, all of
length 1) are compared by cosines S [M, E]. A plan T carries patches to prompts,

  T = argmin <T, 1 - S> over T >= 0 with T 1 <= 1 / M and T' 1 = mass / E,

so that with a mass below 1 the patches that fit none are left out, and the
logit of the class is s <T, S>, with CLIP's scale s. T is found by entropic
scaling (unbalanced optimal transport; an upper bound on one side), and the
prompts are trained as if it were given.

The paper stops scaling at a threshold; a fixed number of rounds, which is ours,
makes no number depend on who else is in a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedms_jax.algorithms import frozen_backbone, soft_prompts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import columns
from fedms_jax.core.contract import Algorithm, Prediction
from fedms_jax.core.types import Backbone, Batch, Plan, Roles, Span, Tree
from fedms_jax.models.family import Prompted


class Choice(NamedTuple):
  """mass: that is carried, in (0, 1]. entropy: lambda, the weight of the plan's
  entropy, more than 0. rounds: of scaling."""

  mass: float
  entropy: float
  rounds: int


def fedotp(
  setting: Setting, prompted: Prompted, length: int, choice: Choice
) -> Algorithm:
  """FedOTP on prompts of `length` vectors before the names of the classes.

  Shared and personal are a 'prompt' each. Predicts by both ('mixture'), which
  users get, and by each alone, as if it were the only one.
  """
  form = soft_prompts.of_classes(setting, prompted, length)
  backbone = setting.backbone

  def begin(key, frozen: Tree) -> Roles:
    own = form.fresh(jax.random.fold_in(key, 1), frozen)
    return Roles(frozen, form.fresh(key, frozen), own)

  def derive(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    del plan
    base, inputs = roles.frozen['base'], columns.inputs(batch)
    mask = backbone.mask(inputs)
    blocks = Span(0, backbone.blocks, (base['blocks'], None))
    x = backbone.run([blocks], backbone.embed(base, inputs), mask)
    return {
      'features': backbone.features(base, x, mask),
      'patches': prompted.patches(base, x),
    }

  def models(roles: Roles, batch: Batch) -> Prediction:
    text = roles.frozen['base']['text']
    one, other = (
      prompted.features(text, parts['prompt'])[None]
      for parts in (roles.shared, roles.personal)
    )
    scale = jnp.exp(roles.frozen['base']['final']['logit_scale'])
    found = {
      'global': one,
      'local': other,
      'mixture': jnp.concatenate([one, other]),
    }
    return Prediction(
      {
        name: scale * matched(x, batch['patches'], choice)
        for name, x in found.items()
      },
      {},
    )

  made = frozen_backbone.method(
    setting,
    form,
    'fedotp',
    begin,
    models,
    'mixture',
    lambda roles: roles.personal,
  )
  return made._replace(
    backbone=_matching(backbone, choice),
    columns=derive,
    derived=('features', 'patches'),
    passes=soft_prompts.with_text(form.passes, prompted, 4),
  )


def matched(classes, patches, choice: Choice):
  """<T, S> [B, C] of class features [E, C, P] and patches [B, M, P]."""
  cosines = jnp.einsum('bmp,ecp->bcme', patches, classes)
  plan = transport(jax.lax.stop_gradient(1 - cosines), choice)
  return jnp.sum(plan * cosines, axis=(-2, -1))


def transport(cost, choice: Choice):
  """The plan [..., M, E] of a cost: rows carry at most 1 / M, columns exactly
  mass / E (Dykstra's scaling, as in arXiv 1805.09068)."""
  rows, places = cost.shape[-2:]
  kernel = -cost / choice.entropy
  most, due = jnp.log(1.0 / rows), jnp.log(choice.mass / places)

  # Of logarithms: a sharp plan has factors that float32 has not.
  def of_rows(v):
    carried = jax.nn.logsumexp(kernel + v[..., None, :], axis=-1)
    return jnp.minimum(most - carried, 0.0)

  def of_columns(u):
    return due - jax.nn.logsumexp(kernel + u[..., None], axis=-2)

  first = jnp.zeros((*cost.shape[:-2], places))
  v = jax.lax.fori_loop(
    0, choice.rounds, lambda _, v: of_columns(of_rows(v)), first
  )
  u = of_rows(v)
  return jnp.exp(u[..., None] + kernel + of_columns(u)[..., None, :])


def _matching(backbone: Backbone, choice: Choice) -> Backbone:
  """The backbone whose head costs what the comparison of patches does."""
  cost, prompts = backbone.cost, 2
  pairs = (cost.tokens - 1) * prompts  # of a class
  classes = cost.head / (2.0 * backbone.width)
  scaling = 4.0 * choice.rounds * classes
  head = pairs * (3 * cost.head + scaling)  # forward and back
  return backbone._replace(cost=cost._replace(head=head))
