"""Client and server optimizers by name (optax)."""

from __future__ import annotations

import jax
import optax

from fedms_jax.core import tree

TAU = 1e-3  # of FedOpt: how adaptive its server optimizers are


def client(
  name: str,
  *,
  shared: float,
  personal: float,
  gate: float,
  odds: float = 0.0,
  momentum: float = 0.0,
  weight_decay: float = 0.0,
  max_norm: float = 0.0,
) -> optax.GradientTransformation:
  """The local optimizer of {'shared': ..., 'personal': ...}.

  shared, personal, gate, odds: learning rates of the shared tree, the personal
  one, the keys of either that begin with `gate`, and `gate_odds`. The gradient
  norm is clipped in each of them apart, and in the keys that begin with
  `apart`, so that none starves another.
  """

  def make(rate: float):
    chain = [optax.clip_by_global_norm(max_norm)] if max_norm else []
    chain.append(
      {
        'sgd': lambda: optax.sgd(rate, momentum=momentum or None),
        'adam': lambda: optax.adam(rate),
        'adamw': lambda: optax.adamw(rate, weight_decay=weight_decay),
      }[name]()
    )
    return optax.chain(*chain)

  rates = {'shared': shared, 'personal': personal, 'gate': gate}
  rates |= {'apart': personal, 'odds': odds}
  return optax.multi_transform({k: make(v) for k, v in rates.items()}, _labels)


def _labels(params):
  """Which learning rate each leaf has."""

  def label(path, _):
    names = tree.path_name(path).split('/')
    if names[1] == 'gate_odds':
      return 'odds'
    if names[1].startswith('apart'):
      return 'apart'
    if names[1].startswith('gate'):
      return 'gate'
    return names[0]

  return jax.tree_util.tree_map_with_path(label, params)


def slots(name: str, momentum: float) -> int:
  """Arrays that the local optimizer keeps per trained parameter."""
  return {'sgd': int(bool(momentum)), 'adam': 2, 'adamw': 2}[name]


def server(
  name: str, learning_rate: float, momentum: float
) -> optax.GradientTransformation:
  """The server optimizer (FedOpt, arXiv 2003.00295), with the paper's beta_2
  of 0.99 and tau of 1e-3 (Adagrad has tau^2 under the root)."""
  return {
    'mean': lambda: optax.sgd(learning_rate),
    'momentum': lambda: optax.sgd(learning_rate, momentum=momentum),
    'adagrad': lambda: optax.adagrad(learning_rate, 0.0, eps=TAU**2),
    'adam': lambda: optax.adam(learning_rate, b2=0.99, eps=TAU),
    'yogi': lambda: optax.yogi(learning_rate, b2=0.99, eps=TAU),
  }[name]()


def pretraining(
  learning_rate: float, weight_decay: float, steps: int
) -> optax.GradientTransformation:
  """AdamW with a short warm-up and a cosine decay to zero over `steps`."""
  rate = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, max(1, steps // 20), max(2, steps)
  )
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(rate, weight_decay=weight_decay),
  )
