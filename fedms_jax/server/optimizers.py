"""Client and server optimizers by name (optax)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.core import tree

TAU = 1e-3  # of FedOpt: how adaptive its server optimizers are


class Course(NamedTuple):
  """A learning rate over the clock of a run, as shares of its peak: a linear
  warm-up over `warmup` steps, then half a cosine down to `floor` at `horizon`.
  The rate of the first step is 1 / `warmup`.
  """

  horizon: int
  warmup: int = 1
  floor: float = 0.0

  def share(self, clock) -> Any:
    """The share at a step of the run, float32."""
    clock = jnp.asarray(clock, jnp.float32)
    warmup = max(self.warmup, 1)
    passed = (clock - warmup) / max(self.horizon - warmup, 1)
    wave = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(passed, 0.0, 1.0)))
    down = self.floor + (1.0 - self.floor) * wave
    return jnp.where(clock < warmup, (clock + 1.0) / warmup, down)


def following(course: Course) -> optax.GradientTransformationExtraArgs:
  """Scales updates by where the clock stands in a course. The clock is the
  run's and not a client's, so that who sat out is not behind (Photon, arXiv
  2411.02908, keeps its trainers' clocks so)."""

  def update(updates, state, params=None, **extra):
    del params
    share = course.share(extra['start'].moment.clock)
    return jax.tree.map(lambda u: u * share, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def at_rate(name: str) -> optax.GradientTransformationExtraArgs:
  """Scales updates by minus the learning rate of that name, which is an input
  of the round, see `Moment.rates`."""

  def update(updates, state, params=None, **extra):
    del params
    rates = extra['start'].moment.rates if 'start' in extra else {}
    if name not in rates:
      raise ValueError(
        f'the learning rate {name!r} is an input of a round, and this one has '
        f'{sorted(rates) or "none"}. Give it in Moment.rates, or make the '
        'optimizer with a number.'
      )
    return jax.tree.map(lambda u: -rates[name] * u, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def client(
  name: str,
  *,
  shared: float | None = None,
  personal: float | None = None,
  gate: float | None = None,
  odds: float = 0.0,
  momentum: float = 0.0,
  weight_decay: float = 0.0,
  max_norm: float = 0.0,
  betas: tuple[float, float] = (0.9, 0.999),
  course: Course | None = None,
) -> optax.GradientTransformation:
  """The local optimizer of {'shared': ..., 'personal': ...}.

  shared, personal, gate, odds: learning rates of the shared tree, the personal
  one, the keys of either that begin with `gate`, and `gate_odds`; None: what
  `Moment.rates` has under that name in each step. The gradient
  norm is clipped in each of them apart, and in the keys that begin with
  `apart`, so that none starves another. betas: of adam and adamw. course: what
  the learning rates follow; None: they stay.
  """

  def make(key: str, rate: float | None):
    chain = [optax.clip_by_global_norm(max_norm)] if max_norm else []
    # The state is that of optax's own `sgd`, `adam` and `adamw`.
    inner = {
      'sgd': lambda: [optax.trace(momentum)] if momentum else [],
      'adam': lambda: [optax.scale_by_adam(*betas)],
      'adamw': lambda: [
        optax.scale_by_adam(*betas),
        optax.add_decayed_weights(weight_decay),
      ],
    }[name]()
    known = rate is not None
    inner.append(optax.scale_by_learning_rate(rate) if known else at_rate(key))
    chain.append(optax.chain(*inner))
    if course is not None:
      chain.append(following(course))
    return optax.chain(*chain)

  rates = {'shared': shared, 'personal': personal, 'gate': gate, 'odds': odds}
  made: dict[Hashable, optax.GradientTransformation] = {
    key: make(key, rate) for key, rate in rates.items()
  }
  made['apart'] = make('personal', personal)
  return optax.multi_transform(made, _labels)


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


def fedmom(
  learning_rate: float, momentum: float
) -> optax.GradientTransformation:
  """FedMom (Huo et al., arXiv 2002.02090): y' = x - rate g, x' = y' + momentum
  (y' - y), with y_0 = x_0. It gives the same x as Nesterov's momentum.

  The state is y - x, zero at first, and not y: so it stays right where
  something else has moved x meanwhile.
  """

  def init(params):
    return jax.tree.map(jnp.zeros_like, params)

  def update(updates, state, params=None):
    del params
    # Both relative to x: where y' is, and where x' is.
    ahead = jax.tree.map(lambda g: -learning_rate * g, updates)
    step = jax.tree.map(lambda a, y: a + momentum * (a - y), ahead, state)
    return step, jax.tree.map(jnp.subtract, ahead, step)

  return optax.GradientTransformation(init, update)


def server(
  name: str, learning_rate: float, momentum: float
) -> optax.GradientTransformation:
  """The server optimizer by name, on the mean of the clients' updates.

  momentum is heavy-ball momentum, nesterov that of DiLoCo (arXiv 2311.08105),
  for fedmom see there. The adaptive ones are those of FedOpt (arXiv
  2003.00295), with the paper's beta_2 of 0.99 and tau of 1e-3 (Adagrad has
  tau^2 under the root).
  """
  return {
    'mean': lambda: optax.sgd(learning_rate),
    'momentum': lambda: optax.sgd(learning_rate, momentum=momentum),
    'nesterov': lambda: optax.sgd(
      learning_rate, momentum=momentum, nesterov=True
    ),
    'fedmom': lambda: fedmom(learning_rate, momentum),
    'adagrad': lambda: optax.adagrad(learning_rate, 0.0, eps=TAU**2),
    'adam': lambda: optax.adam(learning_rate, b2=0.99, eps=TAU),
    # optax.yogi begins with moments that move x under no gradient.
    'yogi': lambda: optax.chain(
      optax.scale_by_yogi(b2=0.99, eps=TAU, initial_accumulator_value=0.0),
      optax.scale_by_learning_rate(learning_rate),
    ),
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
