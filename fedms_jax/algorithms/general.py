"""Baselines that are not about LoRA: FedAvg of all weights, a linear probe,
FedProx."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from fedms_jax.algorithms import fedms
from fedms_jax.algorithms.adapted import Setting
from fedms_jax.algorithms.full import full_model
from fedms_jax.algorithms.probe import linear_probe
from fedms_jax.core.contract import Algorithm, Prediction
from fedms_jax.core.types import Batch, Plan, Roles, Tree


def fedavg(setting: Setting) -> Algorithm:
  """FedAvg (arXiv 1602.05629) of the whole model: full fine-tuning."""
  return _beside_start(
    full_model(setting), 'fedavg', lambda frozen: frozen['base']
  )


def probe(setting: Setting) -> Algorithm:
  """FedAvg (arXiv 1602.05629) of a linear head on the frozen base."""
  return _beside_start(linear_probe(setting), 'linear_probe', lambda frozen: {})


def fedprox(
  setting: Setting, mu: float, *, adapter: Tree | None = None
) -> Algorithm:
  """FedProx (arXiv 1812.06127): FedAvg of LoRA and head whose local loss has
  mu / 2 ||w - w_t||^2 beside it, where w_t is what the server sent."""
  optimizer = optax.chain(proximal(mu), setting.optimizer)
  method = fedms.global_stage(
    setting._replace(optimizer=optimizer), adapter=adapter
  )
  return method._replace(name='fedprox')


def proximal(mu: float) -> optax.GradientTransformation:
  """Adds the gradient of mu / 2 ||w - w_0||^2; w_0 are the parameters that
  the state is made of."""

  def update(updates, state, params=None):
    pull = jax.tree.map(
      lambda g, w, start: g + mu * (w - start), updates, params, state
    )
    return pull, state

  return optax.GradientTransformation(lambda params: params, update)


def _beside_start(
  method: Algorithm, name: str, rest: Callable[[Tree], Tree]
) -> Algorithm:
  """The method, evaluated beside the model that it starts from: frozen has
  the base and the head of the start.

  rest: frozen -> what else of the start the method shares.
  """

  def begin(key, before: Roles) -> Roles:
    frozen = {
      'base': before.frozen['base'],
      'start': {'head': before.frozen['head']},
    }
    return method.begin(key, before)._replace(frozen=frozen)

  def predict(roles: Roles, batch: Batch, plan: Plan) -> Prediction:
    shared = rest(roles.frozen) | roles.frozen['start']
    first = method.predict(roles._replace(shared=shared), batch, plan)
    now = method.predict(roles, batch, plan)
    return Prediction(
      {'pretrained': first.logits['global'], **now.logits}, now.stats
    )

  return method._replace(name=name, begin=begin, predict=predict)
