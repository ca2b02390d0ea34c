"""What a client's first message shows of its one row: gradient inversion.

An attacker who knows the model, the method and the label looks for the input
whose message points where the client's did (arXiv 2003.14053): the cosine
distance of both and the total variation of the image are lowered by the signs
of the gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedms_jax.core import compile, tree
from fedms_jax.core.contract import Algorithm, Moment, Start
from fedms_jax.core.types import Plan, Roles, Tree

WHITE = 255.0


class Search(NamedTuple):
  """steps: of the search. rate: of a pixel in the first one, over the range of
  pixels; it falls to 0 by a cosine. variation: weight of the total
  variation."""

  steps: int = 500
  rate: float = 0.1
  variation: float = 0.02


def sent(
  algorithm: Algorithm, plan: Plan, roles: Roles, image, label, key, rates=None
) -> Tree:
  """What one local step on one row changes: the part of the shared tree that
  trains.

  Args:
    image: float32 [H, W, C] in [0, 255].
    label: of the row, int32 [].
    key: of the step.
    rates: see `Moment`.
  """
  one = jnp.ones((), jnp.int32)
  moment = Moment(one * 0, one * 0, one, one * 0, rates or {})
  start = Start(roles, plan, moment)
  batch = {
    'inputs': image[None],
    'labels': label[None],
    'mask': jnp.ones(1, bool),
  }
  bare = roles._replace(personal=None)
  batch = batch | algorithm.columns(bare, batch, plan)
  carry = algorithm.update.begin(start)
  carry, _ = algorithm.update.step(carry, start, batch, key)
  message, _ = algorithm.update.finish(carry, start)
  before = tree.narrow(roles.shared, algorithm.masks(plan)[0])
  return tree.subtract(message.update, before)


@compile.jit(static=(0, 1, 2))
def invert(
  algorithm: Algorithm,
  plan: Plan,
  search: Search,
  roles: Roles,
  message: Tree,
  image,
  label,
  key,
  rates=None,
):
  """(the image that is found [H, W, C], its distance). message, rates: see
  `sent`. image: where the search begins."""
  falling = optax.cosine_decay_schedule(search.rate * WHITE, search.steps)
  optimizer = optax.chain(
    optax.scale_by_adam(), optax.scale_by_learning_rate(falling)
  )

  def distance(x):
    mine = sent(algorithm, plan, roles, x, label, key, rates)
    off = 1 - _cosine(mine, message)
    return off + search.variation * _variation(x / WHITE), off

  def step(carry, _):
    x, state = carry
    gradient, _ = jax.grad(distance, has_aux=True)(x)
    steps, state = optimizer.update(jnp.sign(gradient), state)
    return (jnp.clip(x + steps, 0.0, WHITE), state), None

  begin = (image, optimizer.init(image))
  (found, _), _ = jax.lax.scan(step, begin, None, length=search.steps)
  return found, distance(found)[1]


def psnr(found, image) -> float:
  """The peak signal-to-noise ratio of an image in [0, 255], in dB."""
  error = jnp.mean(jnp.square(found - image))
  return float(10 * jnp.log10(WHITE**2 / jnp.maximum(error, 1e-12)))


def revealed(message: Tree) -> Any:
  """The label that the change of a linear head's bias shows, as one step of
  gradient descent raises that of the true class alone; None: no head trains."""
  bias = message.get('head', {})
  bias = bias.get('bias') if isinstance(bias, dict) else None
  return None if bias is None else int(jnp.argmax(bias))


def _cosine(a: Tree, b: Tree):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  product = sum(jnp.sum(x * y) for x, y in pairs)
  sizes = tree.squared_norm(a) * tree.squared_norm(b)
  return product * jax.lax.rsqrt(sizes + 1e-30)


def _variation(x):
  """The mean difference of neighboring pixels."""
  across = jnp.mean(jnp.abs(x[:, 1:] - x[:, :-1]))
  return across + jnp.mean(jnp.abs(x[1:] - x[:-1]))
