"""What does a step cost at depth d of L, in time and in compiled FLOPs?

    python -m benchmarks.depth_cost [--quick] [--shape=ti4|b16]
      [--dtype=float32|bfloat16] [--batch=32] [--turns=15]

A stage-1 step (LoRA of rank 8 on the queries and values of the top d blocks,
and the head) with its frozen prefix looked up. The model is that a step below
L costs `(d - spared) / L` of a dense one: what is not computed of the last
block, of which the head reads one token, is spared; that is fitted, once for
time and once for FLOPs, and `error` says how far each row is from it, in dense
steps.
"""

from __future__ import annotations

import numpy as np

from benchmarks import small_vit, timing
from fedms_jax.cluster import memory


def fit(depths: list[int], costs: list[float]) -> tuple[float, list[float]]:
  """(blocks that are spared, error of each depth); the last depth is L."""
  blocks, below = np.array(depths), np.array(depths) < depths[-1]
  ratios = np.array(costs) / costs[-1]
  spared = float(np.mean((blocks - ratios * depths[-1])[below]))
  expected = (blocks - spared * below) / depths[-1]
  return spared, (ratios - expected).tolist()


def main(argv: list[str] | None = None) -> None:
  """Measures all depths."""
  memory.keep_memory()
  args = small_vit.options('depth_cost', argv)
  model = small_vit.backbone(args.shape, args.dtype)
  blocks = model.blocks
  depths = sorted({1, 2, blocks // 4, blocks // 2, 3 * blocks // 4, blocks})
  if args.quick:
    depths = [1, blocks // 2, blocks]
  raw = small_vit.columns(args.shape, args.batch)

  roles = small_vit.roles(model)[0]

  def steps(model):
    algorithm = small_vit.algorithms(model)[0]
    return [
      small_vit.Step(algorithm, roles, raw, small_vit.top(blocks, depth))
      for depth in depths
    ]

  flops = [step.flops() for step in steps(small_vit.one_by_one(model))]
  variants = dict(zip(map(str, depths), steps(model), strict=True))
  seconds = timing.in_turns(variants, args.turns)
  dense = str(blocks)
  ratios = [timing.ratio(seconds, str(d), dense) for d in depths]
  time_spared, time_errors = fit(depths, ratios)
  flop_spared, flop_errors = fit(depths, flops)
  for i, depth in enumerate(depths):
    timing.row(
      depth=depth,
      blocks=blocks,
      milliseconds=1e3 * timing.medians(seconds)[str(depth)],
      time_ratio=ratios[i],
      time_error=time_errors[i],
      gflops=flops[i] / 1e9,
      flop_ratio=flops[i] / flops[-1],
      flop_error=flop_errors[i],
    )
  timing.row(time_spared=time_spared, flop_spared=flop_spared)


if __name__ == '__main__':
  main()
