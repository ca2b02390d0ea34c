"""FedPGP (arXiv 2405.09771): a shared prompt, and what each client adds to it.

A client's prompt is p + U V, where p [T, D] is averaged and U [T, R] and V [R,
D] stay with the client. A contrastive loss holds p to what CLIP knows and the
client's prompt away from p: for each class, let z0 be the text feature of its
zero-shot prompt, zp that of p and z that of p + U V; then

  -log softmax([cos(zp, z0), cos(zp, z)] / temperature)[0],

averaged over classes, is added to the loss with a weight (the paper's mu). The
gradient reaches p through both terms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.adapters import prompt
from fedms_jax.algorithms import frozen_backbone, soft_prompts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core.contract import Algorithm, Prediction, Start
from fedms_jax.core.types import Batch, Roles, Tree
from fedms_jax.models.family import Prompted


def fedpgp(
  setting: Setting,
  prompted: Prompted,
  length: int,
  *,
  rank: int,
  weight: float,
  temperature: float,
) -> Algorithm:
  """FedPGP on prompts of `length` vectors before the names of the classes.

  rank: R. weight, temperature: of the contrastive loss.
  """
  form = soft_prompts.of_classes(setting, prompted, length)

  def begin(key, frozen: Tree) -> Roles:
    shared = form.fresh(key, frozen)
    tokens, width = shared['prompt'].shape
    u, v = jax.random.split(jax.random.fold_in(key, 1))
    own = {'u': prompt.init(u, tokens, rank), 'v': prompt.init(v, rank, width)}
    return Roles(frozen, shared, own)

  def added(roles: Roles) -> Tree:
    own = roles.personal
    return {'prompt': roles.shared['prompt'] + own['u'] @ own['v']}

  def classes(roles: Roles):
    """Class features of the shared and of the own prompt."""
    text = roles.frozen['base']['text']
    return tuple(
      prompted.features(text, parts['prompt'])
      for parts in (roles.shared, added(roles))
    )

  def logits(roles: Roles, found, batch: Batch):
    return frozen_backbone.class_logits(
      setting, roles.frozen, found, batch['features']
    )

  def models(roles: Roles, batch: Batch) -> Prediction:
    found = zip(('global', 'local'), classes(roles), strict=True)
    return Prediction({n: logits(roles, x, batch) for n, x in found}, {})

  def trained(roles: Roles, batch: Batch, start: Start):
    del start
    shared, own = classes(roles)
    zero_shot = roles.frozen['base']['final']['classes']
    away = contrast(zero_shot, shared, own, temperature)
    return logits(roles, own, batch), weight * away

  made = frozen_backbone.method(
    setting, form, 'fedpgp', begin, models, 'local', added, trained=trained
  )
  passes = soft_prompts.with_text(form.passes, prompted, 4)
  return made._replace(passes=passes)


def contrast(zero_shot, shared, own, temperature: float):
  """The contrastive loss of class features [C, P] of length 1; a scalar."""
  positive, negative = (
    jnp.sum(shared * other.astype(jnp.float32), axis=-1) / temperature
    for other in (zero_shot, own)
  )
  return jnp.mean(jax.nn.softplus(negative - positive))
