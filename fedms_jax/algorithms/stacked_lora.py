"""A LoRA for each task of a sequence, orthogonal to those before.

When a task ends its LoRA becomes part of the frozen base, and the next one
begins afresh. Beside the loss stands weight * sum ||A_i^T A||_F^2 over the A_i
of earlier tasks, all targets and blocks, so that tasks read other directions of
what goes into a layer (O-LoRA, arXiv 2310.14152; federated with class
prototypes in PILoRA, arXiv 2401.02094, whose prototypes are not built here).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from fedms_jax.adapters import lora
from fedms_jax.algorithms.continual import KEY
from fedms_jax.core import tree
from fedms_jax.core.contract import Algorithm, Start
from fedms_jax.core.types import Roles, Tree

PAST, _BLOCKS = 'past', 'blocks'


@functools.lru_cache(maxsize=64)
def stacked(algorithm: Algorithm, spec: lora.Spec) -> Algorithm:
  """The stage of each task, with a LoRA of its own.

  frozen[KEY] has sum A_i A_i^T of earlier tasks, [L, d_in, d_in] by target: its
  size does not grow with them. Who joins later needs the LoRA of earlier tasks,
  which the ledger does not count.

  algorithm: as `continual.through` gives it; a plain LoRA and a head are all
  that is shared, and nothing is personal.

  Raises:
    ValueError: when it begins, where that is not so.
  """

  def begin(key, before: Roles) -> Roles:
    roles = algorithm.begin(key, before)
    _check(roles)
    blocks, mine = roles.shared[_BLOCKS], roles.frozen[KEY]
    if PAST not in mine:
      none = jax.tree.map(jnp.zeros_like, _grams(blocks))
      return _with(roles, mine | {PAST: {_BLOCKS: none}})
    base = roles.frozen['base']
    base = base | {_BLOCKS: lora.merge(base[_BLOCKS], blocks, spec.scale)}
    past = {_BLOCKS: tree.add(mine[PAST][_BLOCKS], _grams(blocks))}
    fresh = spec.init(key, base[_BLOCKS])
    start = {_BLOCKS: jax.tree.map(jnp.copy, fresh),
             'head': jax.tree.map(jnp.copy, roles.shared['head'])}  # fmt: skip
    roles = roles._replace(
      frozen=roles.frozen | {'base': base, 'start': start},
      shared=roles.shared | {_BLOCKS: fresh},
    )
    return _with(roles, mine | {PAST: past})

  # Of what is trained one LoRA is left, which belongs to the last base alone.
  return algorithm._replace(begin=begin, models=lambda roles: {})


def _with(roles: Roles, mine: Tree) -> Roles:
  return roles._replace(frozen=roles.frozen | {KEY: mine})


def _grams(blocks: Tree) -> dict[str, jax.Array]:
  """A A^T [..., d_in, d_in] by target."""
  pairs = lora.pairs(blocks).items()
  return {t: a @ jnp.swapaxes(a, -1, -2) for t, (a, _) in pairs}


def _check(roles: Roles) -> None:
  shared = roles.shared
  plain = set(shared) == {_BLOCKS, 'head'} and 'start' in roles.frozen
  names = tree.flat(shared[_BLOCKS]) if plain else {'': None}
  plain &= {name.rsplit('/', 1)[-1] for name in names} == {'a', 'b'}
  if not plain or jax.tree.leaves(roles.personal):
    raise ValueError(
      '`Tasks.method` of a LoRA for each task needs an algorithm in which all '
      'share one LoRA and a head, and nothing else, such as fedit.'
    )


def orthogonal(weight: float) -> optax.GradientTransformationExtraArgs:
  """Adds the gradient of weight * sum ||A_i^T A||_F^2, which is 2 weight
  (sum A_i A_i^T) A, to that of each A of the shared LoRA."""

  def update(updates, state, params=None, **extra):
    assert params is not None
    start: Start = extra['start']
    past = tree.narrow(start.roles.frozen[KEY][PAST], extra['masks'][0])
    part = updates['shared']
    if _BLOCKS not in past or _BLOCKS not in part:
      return updates, state
    slopes = lora.pairs(part[_BLOCKS])
    moved = {
      target: (slopes[target][0] + 2 * weight * (past[_BLOCKS][target] @ a), b)
      for target, (a, _) in lora.pairs(params['shared'][_BLOCKS]).items()
      for b in slopes[target][1:]
    }
    part = part | {_BLOCKS: lora.from_pairs(moved)}
    return updates | {'shared': part}, state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )
