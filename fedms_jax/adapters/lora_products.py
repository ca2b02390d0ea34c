"""Sums of products of LoRA, from the factors of K clients on a leading axis.

Factors are trees of A [K, L, d_in, R] and B [K, L, R, d_out]; a share p [K, L]
says how much each client counts in each block. Everything is one matrix
product over K and R, never K products in memory, in the highest precision of
the back-end: nothing here is done more than once a round.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora
from fedms_jax.core import tree
from fedms_jax.core.shapes import tail
from fedms_jax.core.types import Tree

_TINY = 1e-12


def shares(weights):
  """Weights [K, ...] over their sum; zeros where nobody has any."""
  return weights / jnp.maximum(jnp.sum(weights, axis=0, keepdims=True), _TINY)


def mean(values: Tree, share) -> Tree:
  """sum p_k x_k over the leading axis of all leaves."""
  chex.assert_tree_shape_prefix(values, share.shape)
  return jax.tree.map(lambda x: jnp.sum(_scaled(x, share), axis=0), values)


def products(factors: Tree, share) -> dict[str, jax.Array]:
  """sum p_k A_k B_k [L, d_in, d_out] by target."""
  _check(factors, share)
  return {
    target: _dot('klir,klro->lio', a, _scaled(b, share))
    for target, (a, b) in lora.pairs(factors).items()
  }


def norms(factors: Tree):
  """||A_k B_k||_F over all targets [K, L], from R x R products."""
  _check(factors)
  squares = sum(
    _inner(_dot('klir,klis->klrs', a, a), _dot('klro,klso->klrs', b, b))
    for a, b in lora.pairs(factors).values()
  )
  return jnp.sqrt(jnp.maximum(squares, 0.0))


def residual(factors: Tree, share, kept: Tree | None = None):
  """||sum p_k A_k B_k - A B||_F over everything; A and B are those of `kept`,
  None: the means. Of `kept` the A must be the mean.

  It is the norm of sum p_k (A_k - A) (B_k - B) = U V, and ||U V||^2 is the
  inner product of U'U and V V', both KR x KR. Where B is not the mean, A times
  the difference is added.
  """
  _check(factors, share)
  squares = jnp.float32(0)
  for target, (a, b) in lora.pairs(factors).items():
    u = _side_by_side(a - mean(a, share)[None])
    middle = mean(b, share)
    v = _side_by_side(_turned(_scaled(b - middle[None], share)))
    if kept is not None:
      ours, other = lora.pairs(kept)[target]
      u = jnp.concatenate([u, ours], axis=-1)
      v = jnp.concatenate([v, _turned(middle - other)], axis=-1)
    spec = 'lir,lis->lrs'
    squares += jnp.sum(_inner(_dot(spec, u, u), _dot(spec, v, v)))
  return jnp.sqrt(jnp.maximum(squares, 0.0))


def refined(factors: Tree, share, pull: float) -> Tree:
  """The mean A, and the B nearest to the mean product under it: it minimizes
  ||sum p_k A_k B_k - A B||_F^2 + pull ||B - mean B||_F^2 by target and block.
  """
  _check(factors, share)

  def nearest(pair):
    a, b = pair
    first, middle = mean(a, share), mean(b, share)
    apart = _dot('lir,klis->klrs', first, a - first[None])
    # A'(sum p A_k B_k - A B), of differences alone, which cancel no more.
    missed = _dot('klrs,klso->lro', apart, _scaled(b - middle[None], share))
    gram = _dot('lir,lis->lrs', first, first)
    gram = gram + pull * jnp.eye(gram.shape[-1])[None]
    return first, middle + jnp.linalg.solve(gram, missed)

  return lora.from_pairs(tree.in_turn(nearest, lora.pairs(factors)))


def best(factors: Tree, share, rank: int) -> Tree:
  """LoRA {A [L, d_in, rank], B [L, rank, d_out]} nearest to sum p_k A_k B_k.

  By the singular value decomposition U S V of a matrix of at most KR rows:
  A = U and B = S V in order of the singular values, so that the first r
  columns are the best of rank r.
  """
  _check(factors, share)

  def decomposed(pair):
    a, b = pair
    q1, r1 = jnp.linalg.qr(_side_by_side(a))
    q2, r2 = jnp.linalg.qr(_side_by_side(_turned(_scaled(b, share))))
    core = _dot('lir,ljr->lij', r1, r2)
    u, s, v = jnp.linalg.svd(core, full_matrices=False)
    left = _dot('lij,ljr->lir', q1, u[..., :rank])
    right = _dot('lrj,loj->lro', v[..., :rank, :], q2)
    return left, s[..., :rank, None] * right

  return lora.from_pairs(tree.in_turn(decomposed, lora.pairs(factors)))


def _check(factors: Tree, share=None) -> None:
  """Factors are those of K clients, and a share is [K, L]."""
  for a, b in lora.pairs(factors).values():
    chex.assert_rank([a, b], 4)
    chex.assert_axis_dimension(b, 2, a.shape[3])
    if share is not None:
      chex.assert_shape(share, a.shape[:2])


def _dot(spec: str, x, y):
  return jnp.einsum(spec, x, y, precision='highest')


def _inner(x, y):
  return jnp.sum(x * y, axis=(-2, -1))


def _turned(x):
  return jnp.swapaxes(x, -1, -2)


def _scaled(x, share):
  return x * tail(share, x)


def _side_by_side(x):
  """[K, L, d, R] -> [L, d, KR]."""
  clients, blocks, size, rank = x.shape
  return jnp.moveaxis(x, 0, 2).reshape(blocks, size, clients * rank)
