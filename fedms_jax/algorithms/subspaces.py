"""Learning a task beside the directions that earlier tasks use.

FOT (Bakman et al., ICLR 2024, arXiv 2309.01289) keeps, for each layer, an
orthonormal basis U of what earlier tasks put into it. When a task has
ended, clients send sums over their rows, and the server adds the directions in
which these inputs are large; in each round of a later task it takes of the
averaged update of a kernel the part orthogonal to U. So what a layer gives for
inputs in span(U) stays as it was.

Ours, for LoRA: each task has a LoRA of its own, as in `stacked_lora.py`, whose
A begins in the complement of U, and the updates of A are what is projected. So
x A = 0 for all x in span(U), and B is free. The sums are X X^T of all of a
client's tokens, where the paper sends (I - U U^T) X G with Gaussian G, which is
wider than d_in; both have the same directions, and sums of X X^T are the same
for any partition. The share of squared norms decides how many directions are
kept; the paper's code compares one with a ratio of norms.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fedms_jax.adapters import layer_inputs, lora
from fedms_jax.algorithms import adapted, fisher
from fedms_jax.algorithms.continual import KEY
from fedms_jax.core import activation, tree
from fedms_jax.core.contract import (
  Algorithm,
  ClientUpdate,
  Context,
  Message,
  Received,
  Start,
)
from fedms_jax.core.types import Batch, Roles, Tree

KEPT = 'kept'  # of frozen[KEY]: U U^T by target, [L, d_in, d_in]
_BLOCKS, _SUMS = 'blocks', 'inputs'
_LEAST = 1e-6  # of a squared norm: less is rounding


def grown(kept, gram, share: float):
  """The projector U U^T [d, d] with the directions of a task's inputs.

  Directions of what is orthogonal to those before are added, the largest
  first, until ||U^T X||^2 is `share` of ||X||^2.

  Args:
    kept: U U^T before, [d, d].
    gram: X X^T, [d, d].
    share: in [0, 1].
  """
  rest = jnp.eye(len(kept)) - kept
  left = rest @ gram @ rest
  values, vectors = jnp.linalg.eigh((left + left.T) / 2)
  values, vectors = jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]
  whole = jnp.trace(gram)
  before = jnp.sum(kept * gram) + jnp.cumsum(values) - values
  taken = (before < share * whole) & (values > _LEAST * whole)
  new = kept + (vectors * taken[None, :]) @ vectors.T
  # A projector again, however many have been added up.
  values, vectors = jnp.linalg.eigh((new + new.T) / 2)
  return (vectors * (values > 0.5)[None, :]) @ vectors.T


def outside(kept, x):
  """What of x [..., d, R] is orthogonal to all that is kept [..., d, d]."""
  return x - kept @ x


@functools.lru_cache(maxsize=64)
def shielded(algorithm: Algorithm) -> Algorithm:
  """The stage of each task, which leaves alone what earlier ones use.

  algorithm: as `stacked_lora.stacked` gives it.
  """
  inner = algorithm.server

  def begin(key, before: Roles) -> Roles:
    roles = algorithm.begin(key, before)
    blocks, mine = roles.shared[_BLOCKS], roles.frozen[KEY]
    kept = mine.get(KEPT)
    if kept is None:
      mine = mine | {KEPT: layer_inputs.empty(blocks)}
      return roles._replace(frozen=roles.frozen | {KEY: mine})
    blocks = _moved(lambda t, a: outside(kept[t], a), blocks)
    begun = roles.frozen['start'] | {_BLOCKS: jax.tree.map(jnp.copy, blocks)}
    return roles._replace(
      frozen=roles.frozen | {'start': begun},
      shared=roles.shared | {_BLOCKS: blocks},
    )

  def step(roles: Roles, memory, received: Received, context: Context):
    old = lora.pairs(roles.shared[_BLOCKS])
    roles, memory, measured = inner.step(roles, memory, received, context)
    kept = roles.frozen[KEY][KEPT]

    def projected(target, a):  # of nothing that is kept, bitwise a
      return a - kept[target] @ (a - old[target][0])

    blocks = _moved(projected, roles.shared[_BLOCKS])
    shared = roles.shared | {_BLOCKS: blocks}
    return roles._replace(shared=shared), memory, measured

  return algorithm._replace(begin=begin, server=inner._replace(step=step))


def _moved(move, blocks: Tree) -> Tree:
  """The LoRA with `move(target, A)` in place of each A."""
  pairs = lora.pairs(blocks).items()
  return lora.from_pairs({t: (move(t, a), b) for t, (a, b) in pairs})


@functools.lru_cache(maxsize=64)
def measured(algorithm: Algorithm, spec: lora.Spec, share: float) -> Algorithm:
  """The stage of one round that measures what a task puts into the layers that
  have LoRA, and keeps its directions; nothing is trained. Its server gets sums
  alone.

  algorithm: of the task, as `shielded` gives it. share: see `grown`.
  """

  def close(roles: Roles, memory, received: Received, context: Context):
    del context
    mine = roles.frozen[KEY]
    grow = jax.vmap(functools.partial(grown, share=share))
    grams = received.extras[_SUMS]['grams']
    pairs = {t: (kept, grams[t]) for t, kept in mine[KEPT].items()}
    new = tree.in_turn(lambda pair: grow(*pair), pairs)
    new = tree.where(received.count > 0, new, mine[KEPT])
    frozen = roles.frozen | {KEY: mine | {KEPT: new}}
    return roles._replace(frozen=frozen), memory, {}

  def traffic(shapes: Roles, plan, ever, cohort: int):
    del cohort
    grams = jax.eval_shape(layer_inputs.empty, shapes.shared[_BLOCKS])
    down = tree.nbytes_of(shapes.shared, ever)
    return float(tree.nbytes(grams)), float(down)

  return fisher.measuring(algorithm, 'inputs', close)._replace(
    update=_summing(algorithm, spec), traffic=traffic
  )


def _summing(algorithm: Algorithm, spec: lora.Spec) -> ClientUpdate:
  """Adds up X X^T of all tokens that reach each layer."""
  backbone = algorithm.backbone.adapted(layer_inputs.Measured(spec))

  def step(carry, start: Start, batch: Batch, key) -> tuple[Tree, Any]:
    del key
    roles, low = start.roles, start.plan.boundary
    base, head = roles.frozen['base'], roles.shared['head']
    tokens, x = adapted.mask(backbone, batch), batch['prefix']
    held = jnp.ones(x.shape[:2], bool) if tokens is None else tokens
    held = (held & batch['mask'][:, None]).astype(jnp.float32)

    def features(grams):
      blocks = layer_inputs.beside(roles.shared[_BLOCKS], grams, held)
      spans = activation.prefix(base[_BLOCKS], blocks, backbone.blocks, low)
      out = backbone.run(spans, x, tokens)
      found = backbone.features(base, out, tokens)
      return jnp.sum(found.astype(jnp.float32)), found

    slopes, found = jax.grad(features, has_aux=True)(carry)
    out = adapted.logits(backbone, base, head, found)
    _, sums = adapted.learned(algorithm.task, batch, out)
    return tree.add(carry, slopes), sums

  def finish(carry, start: Start):
    return Message({}, {_SUMS: {'grams': carry}}), start.roles.personal

  return ClientUpdate(
    lambda start: layer_inputs.empty(start.roles.shared[_BLOCKS]),
    step,
    finish,
    algorithm.update.sums,
  )
