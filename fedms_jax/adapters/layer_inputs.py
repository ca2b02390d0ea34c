"""LoRA that measures what goes into its layers.

Blocks run in a loop that gives nothing but activations, so the sums leave by
another way: as a derivative. Beside its factors each layer has a `gram`, which
changes nothing, and whose derivative is declared to be the sum of x x^T.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora
from fedms_jax.core import tree
from fedms_jax.core.types import Tree


@dataclasses.dataclass(frozen=True)
class Measured:
  """An `Adapter` that does what LoRA does; see the module.

  Beside `a` and `b` a layer has `gram` [d_in, d_in] and `held`, float32 [B, T],
  which tokens count.
  """

  spec: lora.Spec

  @property
  def where(self) -> tuple[str, ...]:
    """See `Adapter`."""
    return self.spec.where

  def init(self, key, blocks: Tree) -> Tree:
    """LoRA as it begins, without sums; see `Adapter`."""
    return self.spec.init(key, blocks)

  def apply(self, params: Tree, x, y):
    """What LoRA makes of it; see `Adapter`."""
    y = self.spec.apply(params, x, y)
    return _measured(params['gram'], params['held'], x, y)


@jax.custom_vjp
def _measured(gram, held, x, y):
  del gram, held, x
  return y


def _forward(gram, held, x, y):
  del gram
  return y, (held, x)


def _backward(kept, slope):
  held, x = kept
  wide = x.astype(jnp.float32)
  gram = jnp.einsum('...i,...j->ij', wide * held[..., None], wide)
  return gram, jnp.zeros_like(held), jnp.zeros_like(x), slope


_measured.defvjp(_forward, _backward)


def empty(blocks: Tree) -> dict[str, jax.Array]:
  """No sums yet: zeros [L, d_in, d_in] by target of a LoRA [L, ...]."""
  return {
    target: jnp.zeros((*a.shape[:-1], a.shape[-2]))
    for target, (a, _) in lora.pairs(blocks).items()
  }


def beside(blocks: Tree, grams: dict[str, jax.Array], held) -> Tree:
  """The LoRA [L, ...] with what `Measured` needs. held: [B, T]."""
  flat = {}
  for target, gram in grams.items():
    flat[f'{target}/gram'] = gram
    flat[f'{target}/held'] = jnp.broadcast_to(
      held[None], (len(gram), *held.shape)
    )
  return lora.joined(blocks, tree.nested(flat))
