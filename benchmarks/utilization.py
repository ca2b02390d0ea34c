"""Which share of the machine's matrix-product rate does a step reach?

    python -m benchmarks.utilization [--quick] [--shape=ti4|b16]
      [--dtype=float32|bfloat16] [--batch=32] [--turns=15]

Model FLOPs utilization: the FLOPs of a dense stage-1 step by the ledger (matrix
products of forward and backward alone), over its seconds, over the rate of one
large square matrix product of the same type on the same device, all measured in
turns. `attention` and `mlp` are the rates of the model's own products by
themselves, [tokens of the batch, D] times [D, D] and [D, 4 D]: what bounds the
step where they are low.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from benchmarks import small_vit, timing
from fedms_jax.cluster import memory
from fedms_jax.core.types import Passes
from fedms_jax.systems import cost

SIDE = {'cpu': 2048}  # of the square product; else 8,192


class Product:
  """Products of [m, k] and [k, n] matrices, some in a row."""

  def __init__(self, m: int, k: int, n: int, dtype: str, repeats: int):
    keys = jax.random.split(jax.random.key(0), 2)
    self._a = jax.random.normal(keys[0], (m, k), dtype)
    self._b = jax.random.normal(keys[1], (repeats, k, n), dtype)
    self.flops = 2.0 * m * k * n * repeats
    self._run = jax.jit(lambda a, b: [a @ x for x in b])

  def __call__(self):
    return self._run(self._a, self._b)


def square(dtype: str, quick: bool) -> Product:
  """One large product, whose rate is what others are a share of."""
  side = 256 if quick else SIDE.get(jax.default_backend(), 8192)
  return Product(side, side, side, dtype, 1)


def main(argv: list[str] | None = None) -> None:
  """Measures the step and the products."""
  memory.keep_memory()
  args = small_vit.options('utilization', argv)
  model = small_vit.backbone(args.shape, args.dtype)
  algorithm, _ = small_vit.algorithms(model)
  roles = small_vit.roles(model)[0]
  plan = small_vit.top(model.blocks, model.blocks)
  raw = small_vit.columns(args.shape, args.batch)
  step = small_vit.Step(algorithm, roles, raw, plan)
  lora = cost.lora_flops(roles.shared['blocks'], model.cost.tokens)
  one = cost.client_flops(model.cost, Passes(), plan, lora)
  tokens, width = args.batch * model.cost.tokens, model.width
  variants = {
    'step': step,
    'square': square(args.dtype, args.quick),
    'attention': Product(tokens, width, width, args.dtype, 8),
    'mlp': Product(tokens, width, 4 * width, args.dtype, 4),
  }
  seconds = timing.in_turns(variants, args.turns)
  medians = timing.medians(seconds)
  rates = {
    name: variants[name].flops / medians[name]
    for name in ('square', 'attention', 'mlp')
  }
  rate = args.batch * one / medians['step']
  timing.row(
    device=jax.devices()[0].device_kind,
    cores=timing.cores(),
    shape=args.shape,
    dtype=str(jnp.dtype(args.dtype)),
    batch=args.batch,
    milliseconds=1e3 * medians['step'],
    gflops_per_second={k: v / 1e9 for k, v in (rates | {'step': rate}).items()},
    utilization=rate / rates['square'],
    of_own_products=rate / rates['mlp'],
  )


if __name__ == '__main__':
  main()
