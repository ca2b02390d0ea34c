"""What does a step of stage 2 cost, beside a plain step of local LoRA?

    python -m benchmarks.stage2_cost [--quick] [--shape=ti4|b16]
      [--dtype=float32|bfloat16] [--batch=32] [--turns=15]

At each depth: `local`, LoRA and head alone, with its frozen prefix looked up;
`stage2`, the mixture of a local and the global expert with a gate, its columns
looked up; `naive`, the same mixture with everything computed in the step.
Ratios are to `local`.
"""

from __future__ import annotations

from benchmarks import small_vit, timing
from fedms_jax.cluster import memory


def main(argv: list[str] | None = None) -> None:
  """Measures the variants at each depth."""
  memory.keep_memory()
  args = small_vit.options('stage2_cost', argv)
  model = small_vit.backbone(args.shape, args.dtype)
  first, second = small_vit.algorithms(model)
  before, after = small_vit.roles(model)
  raw = small_vit.columns(args.shape, args.batch)
  for depth in sorted({1, model.blocks // 4, model.blocks}):
    plan = small_vit.top(model.blocks, depth)
    variants = {
      'local': small_vit.Step(first, before, raw, plan),
      'stage2': small_vit.Step(second, after, raw, plan),
      'naive': small_vit.Step(second, after, raw, plan, derive=False),
    }
    seconds = timing.in_turns(variants, args.turns)
    milliseconds = {k: 1e3 * v for k, v in timing.medians(seconds).items()}
    timing.row(
      depth=depth,
      blocks=model.blocks,
      milliseconds=milliseconds,
      stage2_ratio=timing.ratio(seconds, 'stage2', 'local'),
      naive_ratio=timing.ratio(seconds, 'naive', 'local'),
    )


if __name__ == '__main__':
  main()
