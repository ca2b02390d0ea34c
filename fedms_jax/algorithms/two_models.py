"""Two models at each client: a shared one and an own one. Ditto, APFL, FedDPA.

The shared model w is that of FedAvg-LoRA, whatever the own model v does: both
train at once, on the same batches, and no gradient of v's loss reaches w.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import adapted, profiles, two_experts
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import client, joined, token_logits
from fedms_jax.core.contract import Algorithm, ClientUpdate, Prediction, Start
from fedms_jax.core.types import Batch, Passes, Plan, Roles, Tree

# Examples whose mixed LoRA are held at a time, in evaluation.
_GROUP = 32


def ditto(
  setting: Setting, pull: float, *, adapter: Tree | None = None
) -> Algorithm:
  """Ditto (arXiv 2012.04221): v follows the gradient of its loss plus pull *
  (v - w), where w is what the server sent."""

  def own_loss(roles: Roles, batch: Batch, start: Start):
    own, plan = roles.personal, start.plan
    out = two_experts.logits(setting, roles.frozen, own, batch, plan)
    away = two_experts.squared_distance(own, start.roles.shared)
    return out, pull / 2 * away

  update = _both(setting, own_loss, client.everywhere)
  return two_experts.pair(setting, 'ditto', update, adapter=adapter)


def apfl(
  setting: Setting,
  alpha: float,
  learning_rate: float,
  *,
  adapter: Tree | None = None,
) -> Algorithm:
  """APFL (arXiv 2003.13461): users get the mix alpha v + (1 - alpha) w.

  v follows the gradient of the mix's loss, through the mix; w is taken as it
  is at the client in that step. Each client learns its alpha by plain SGD of
  `learning_rate`, a step per batch, within [0, 1]. v is kept apart from the
  mix: what is stored is v, never the mix. See `two_experts.blend` for what a
  mix of LoRA is.
  """
  optimizer = optax.multi_transform(
    {'models': setting.optimizer, 'alpha': _within_bounds(learning_rate)},
    lambda train: jax.tree_util.tree_map_with_path(
      lambda path, _: 'alpha' if path[1].key == 'alpha' else 'models', train
    ),
  )

  def mixed(roles: Roles, batch: Batch, plan: Plan):
    weight, shared = roles.personal['alpha'], roles.shared
    return _mixture(setting, roles, weight, shared, batch, plan)

  def own_loss(roles: Roles, batch: Batch, start: Start):
    shared = two_experts.constant(roles.shared)
    return mixed(roles._replace(shared=shared), batch, start.plan), 0.0

  update = _both(
    setting._replace(optimizer=optimizer), own_loss, client.everywhere
  )
  plain = two_experts.pair(
    setting, 'apfl', update, extra={'alpha': alpha}, adapter=adapter
  )

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    weight = jnp.full(batch['mask'].shape, roles.personal['alpha'])
    found = plain.predict(roles, batch, plan).logits
    whole = adapted.at_rest(roles, setting.backbone.blocks)
    mixture = mixed(whole, batch, plan)
    return Prediction(found | {'mixture': mixture}, {'own_weight': weight})

  return plain._replace(predict=predict, served='mixture')


def feddpa(
  setting: Setting, scale: float, *, adapter: Tree | None = None
) -> Algorithm:
  """FedDPA (arXiv 2403.19211), with local adapters that train in each round.

  v is the local adapter. It trains in the model halfway between v and what
  the server sent. Of an input x, users get the model with weight
  scale * max(0, s) on v, where s is the mean cosine similarity between the
  features of x and those of the client's training rows. The mean over rows
  is linear, so a client keeps one vector, the mean of its normalized
  features ('profile' [D]), of all rows of its last round; the paper draws a
  few rows. Features are those of the frozen base, so that they are derived
  once; the paper has the local adapter's. A client that never trained has no
  profile and gets the shared model.
  """

  def own_loss(roles: Roles, batch: Batch, start: Start):
    sent = joined.rest(start.roles.shared, setting.backbone.blocks)
    return _mixture(setting, roles, 0.5, sent, batch, start.plan), 0.0

  def masks(plan: Plan):
    return plan.active, {'blocks': plan.active, 'profile': False}

  def keep(message, personal, profile):
    return message, personal | {'profile': profile}

  plain = two_experts.pair(
    setting,
    'feddpa',
    profiles.profiled(setting, _both(setting, own_loss, masks), keep),
    extra={'profile': jnp.zeros(setting.backbone.width)},
    adapter=adapter,
  )

  def columns(roles: Roles, batch: Batch, plan: Plan) -> Batch:
    found = plain.columns(roles, batch, plan)
    rest = joined.rest(roles.frozen['start'], setting.backbone.blocks)
    whole = batch | found
    x = two_experts.features(setting, roles.frozen, rest['blocks'], whole, plan)
    return found | {'base_features': x}

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    likeness = adapted.directions(setting, batch) @ roles.personal['profile']
    weight = scale * jnp.clip(likeness, 0.0, 1.0)
    found = plain.predict(roles, batch, plan).logits
    whole = adapted.at_rest(roles, setting.backbone.blocks)
    mixed = _mixture(setting, whole, weight, whole.shared, batch, plan)
    return Prediction(found | {'mixture': mixed}, {'own_weight': weight})

  return plain._replace(
    columns=columns,
    derived=('prefix', 'base_features'),
    predict=predict,
    masks=masks,
    served='mixture',
    passes=Passes(trained=2, frozen=1),
  )


def _both(setting: Setting, own_loss: Callable, masks) -> ClientUpdate:
  """SGD on w's loss and, apart from it, on the own model's.

  own_loss: (roles, batch, start) -> (logits, what is added to their loss); it
  must not let a gradient pass to roles.shared. The two have learning rates
  and clipped norms of their own in the optimizer of `optimizers.client`.
  """
  task = setting.task

  def objective(roles: Roles, batch: Batch, key, start: Start):
    del key
    shared = two_experts.logits(
      setting, roles.frozen, roles.shared, batch, start.plan
    )
    own, more = own_loss(roles, batch, start)
    total, sums = adapted.learned(task, batch, own, shared)
    return total + more, sums

  return client.sgd(objective, setting.optimizer, masks)


def _within_bounds(learning_rate: float) -> optax.GradientTransformation:
  """SGD of parameters that stay within [0, 1]."""
  return optax.chain(
    optax.sgd(learning_rate),
    optax.stateless_with_tree_map(
      lambda u, p: jnp.clip(jnp.asarray(p) + u, 0.0, 1.0) - jnp.asarray(p)
    ),
  )


def _mixture(setting: Setting, roles: Roles, weight, other, batch, plan: Plan):
  """Logits of the model with `weight` ([], or [B] by example) on the own one
  and the rest on `other`, in every layer; of the heads, logits are mixed,
  which is the same where a head is linear."""
  frozen, own = roles.frozen, roles.personal
  weight = jnp.asarray(weight)

  def features(weight, batch):
    stack = two_experts.blend(weight, own['blocks'], other['blocks'])
    return two_experts.features(setting, frozen, stack, batch, plan)

  if weight.ndim:
    x = _by_example(features, weight, batch)
  else:
    x = features(weight, batch)
  first, second = (
    adapted.logits(setting.backbone, frozen['base'], model['head'], x)
    for model in (own, other)
  )
  weight = weight.reshape(weight.shape + (1,) * (x.ndim - 1) * weight.ndim)

  def mixed(weight, first, second):
    return weight * first + (1 - weight) * second

  return token_logits.combined(mixed, weight, first, second)


def _by_example(features: Callable, weight, batch: Batch):
  """Features [B, ...] of weights [B]: every example has a LoRA of its own, of
  which a group of examples is held at a time."""
  count = len(weight)
  size = min(count, _GROUP)

  def grouped(x):
    padded = jnp.pad(x, [(0, -count % size)] + [(0, 0)] * (x.ndim - 1))
    return padded.reshape(-1, size, *x.shape[1:])

  def one(weight, row):
    return features(weight, jax.tree.map(lambda x: x[None], row))[0]

  groups = jax.tree.map(grouped, (weight, batch))
  out = jax.lax.map(lambda group: jax.vmap(one)(*group), groups)
  return out.reshape(-1, *out.shape[2:])[:count]
