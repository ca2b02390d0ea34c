"""FedFN (arXiv 2311.13267): features are normalized before the classifier.

In FedAvg on skewed labels the features of classes that a client has grow
longer than those of classes that it lacks. Here the head sees u = s z / ||z||
of a feature z, in training and in prediction, so that only its direction
counts; all else is FedAvg. The paper's s is 1. As it trains the whole
network, what is LoRA and head here is our choice, and so are an s other than
1 and where the larger rate of the head, which shorter features need, comes
from.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedms_jax.algorithms import fedms
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.core import tree
from fedms_jax.core.contract import Algorithm, Prediction
from fedms_jax.core.types import Batch, Plan, Roles, Tree

_LEAST = 1e-6  # length of a feature that has a direction


def fedfn(
  setting: Setting,
  length: float,
  head_rate: float,
  *,
  adapter: Tree | None = None,
) -> Algorithm:
  """FedAvg of LoRA, and of a head on features of one length.

  length: s, above 0. head_rate: the head moves by this times what the local
  optimizer says. adapter: see `adapted.fresh`. The exported model says its
  'feature_length', a scalar, for no class of transformers normalizes there.
  """
  model = setting.model

  def logits(params: Tree, head: Tree, x):
    return model.logits(params, head, normalized(x, length))

  normed = setting._replace(
    model=model._replace(logits=logits),
    optimizer=optax.chain(setting.optimizer, head_faster(head_rate)),
  )
  plain = fedms.global_stage(setting, adapter=adapter)
  made = fedms.global_stage(normed, adapter=adapter)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    found = made.predict(roles, batch, plan)
    first = plain.predict(roles, batch, plan).logits['pretrained']
    return Prediction(found.logits | {'pretrained': first}, found.stats)

  def models(roles: Roles) -> dict[str, Tree]:
    whole = made.models(roles)['global']
    return {'global': whole | {'feature_length': jnp.float32(length)}}

  return made._replace(name='fedfn', predict=predict, models=models)


def normalized(x, length: float):
  """Features [..., D] brought to one length, in float32."""
  x = x.astype(jnp.float32)
  norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _LEAST**2)
  return length * x / norm


def head_faster(factor: float) -> optax.GradientTransformation:
  """Multiplies the updates of 'head', in any role, by a factor."""

  def scaled(path, update):
    names = tree.path_name(path).split('/')
    return update * factor if names[1] == 'head' else update

  def update(updates, state, params=None):
    del params
    return jax.tree_util.tree_map_with_path(scaled, updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
