"""Local training by losses alone: two of them give a slope in one direction.

No derivative is taken of anything. With z a random direction and c a small
step, d = (l(w + c z) - l(w - c z)) / (2 c) is how steep the loss is along z:

- gaussian, rademacher: d z estimates the gradient (MeZO, arXiv 2305.17333);
- spsa: d / z, elementwise, with z uniform within +-[1/2, 1] (SPSA, Spall 1992,
  doi 10.1109/9.119632; so in BlackVIP, arXiv 2303.14773).

Both losses are of the same batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.core import client, tree
from fedms_jax.core.contract import ClientUpdate, Start
from fedms_jax.core.types import Batch, Tree

KINDS = ('gaussian', 'rademacher', 'spsa')


class Estimator(NamedTuple):
  """How a slope is estimated.

  kind: one of `KINDS`. step: c. directions: of which the estimates are
  averaged. decay: c falls with the clock of the run, as step / (clock +
  1)^decay; 0: it stays.
  """

  kind: str = 'gaussian'
  step: float = 0.01
  directions: int = 1
  decay: float = 0.0

  @property
  def queries(self) -> int:
    """Losses of a batch that one estimate asks for."""
    return 2 * self.directions


def check(estimator: Estimator) -> None:
  """Raises `ValueError` for an estimator that is none."""
  if estimator.kind not in KINDS:
    raise ValueError(
      f'`Estimator.kind`={estimator.kind!r} is not allowed; allowed: '
      f'{", ".join(KINDS)}.'
    )
  if not estimator.step > 0:
    raise ValueError(
      f'`Estimator.step`={estimator.step} is not allowed; allowed: more than 0.'
    )
  if estimator.directions < 1:
    raise ValueError(
      f'`Estimator.directions`={estimator.directions} is not allowed; allowed: '
      '1 or more.'
    )


def direction(kind: str, key, like: Tree) -> Tree:
  """A random direction z: float32, of the shapes of `like`."""
  leaves, structure = jax.tree.flatten(like)
  keys = jax.random.split(key, max(len(leaves), 1))

  def draw(key, x):
    if kind == 'gaussian':
      return jax.random.normal(key, x.shape)
    sign = jax.random.rademacher(key, x.shape, jnp.float32)
    if kind == 'rademacher':
      return sign
    size = jax.random.uniform(
      jax.random.fold_in(key, 1), x.shape, minval=0.5, maxval=1.0
    )
    return sign * size

  drawn = [draw(k, x) for k, x in zip(keys, leaves, strict=False)]
  return jax.tree.unflatten(structure, drawn)


def moved(point: Tree, along: Tree, by) -> Tree:
  """The point + `by` times a direction, in the types of the point."""
  return jax.tree.map(lambda x, z: (x + by * z).astype(x.dtype), point, along)


def slope_along(loss: Callable, point: Tree, along: Tree, step):
  """(d, the mean of the sums of both sides).

  Args:
    loss: point -> (loss [], sums).
    point: where.
    along: z.
    step: c.
  """
  up, seen = loss(moved(point, along, step))
  down, other = loss(moved(point, along, -step))
  slope = (up.astype(jnp.float32) - down.astype(jnp.float32)) / (2 * step)
  return slope, jax.tree.map(lambda a, b: (a + b) / 2, seen, other)


def estimate(
  estimator: Estimator, loss: Callable, train: Tree, batch: Batch, key, clock=0
):
  """The estimated gradient of a loss, and its sums; see `client.mean_gradient`.

  Sums are means over all points that were asked for.
  """
  step = estimator.step / (jnp.float32(clock) + 1) ** estimator.decay

  def one(key):
    z = direction(estimator.kind, key, train)
    d, sums = slope_along(lambda point: loss(point, batch), train, z, step)
    if estimator.kind == 'spsa':
      return jax.tree.map(lambda z: d / z, z), sums
    return tree.scale(z, d), sums

  if estimator.directions == 1:
    return one(key)
  # One after another: no more than one point is there at a time.
  keys = jax.random.split(key, estimator.directions)
  found = jax.lax.map(one, keys)
  return jax.tree.map(lambda x: jnp.mean(x, axis=0), found)


def zeroth(
  objective: Callable[..., tuple[Any, dict[str, Any]]],
  optimizer: optax.GradientTransformation,
  masks: Callable,
  estimator: Estimator,
  sums: tuple[str, ...] = ('loss', 'score'),
  prepare: Callable[[Start], Tree] | None = None,
) -> ClientUpdate:
  """`client.sgd` with an estimated gradient; for the arguments see there.

  Raises:
    ValueError: the estimator is none.
  """
  check(estimator)

  def descent(gradient: Callable) -> ClientUpdate:
    return client.sgd(objective, optimizer, masks, sums, prepare, gradient)

  def step(carry, start: Start, batch: Batch, key):
    def gradient(loss, train, batch, key):
      return estimate(estimator, loss, train, batch, key, start.moment.clock)

    return descent(gradient).step(carry, start, batch, key)

  return descent(client.mean_gradient)._replace(step=step)
