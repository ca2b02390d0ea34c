"""How fast is a run beside PyTorch + PEFT, client after client?

    python -m benchmarks.versus_torch [--quick] [--torch=<python>] [--clients=2]
      [--batch=32] [--steps=5] [--turns=5] [--shape=ti4|b16]
      [--dtype=float32|bfloat16] [--unroll=12] [--only=<part of a row's name>]

The same model (by default ViT-Ti/4 at 32x32, float32, LoRA of rank 8 on queries
and values, and a head), clients, batches and steps, Adam, as many threads; on
a GPU if there is one; products in the same type (theirs by autocast). Ours is
the driver with all that a round does; theirs, `peers/torch_lora.py`, is a loop
over clients in an interpreter that has torch, transformers and peft (by default
the one that runs this). Ours compiles blocks one by one (`--model.unroll`). One
row for a dense round of FedAvg of LoRA, and one
for each whole run of FedMS, by the depths that SAL reaches.
`speedup` is their time by ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import sys
from collections.abc import Callable

from benchmarks import small_vit, timing
from fedms_jax.cluster import memory
from fedms_jax.persistence import run_store
from fedms_jax.simulation import driver, observer
from fedms_jax.simulation.state import Options, Stage

SCRIPT = pathlib.Path(__file__).parent / 'peers' / 'torch_lora.py'
# Depths of the rounds of both stages, as the capability queue may choose them:
# as many rounds as the command runs by default.
RUNS = {
  'SAL to 2 of 12': ((1,) * 15 + (2,) * 15, (2,) * 20),
  'SAL to 3 of 12': ((1,) * 10 + (2,) * 10 + (3,) * 10, (3,) * 20),
  'SAL to 6 of 12': (tuple(1 + t // 5 for t in range(30)), (6,) * 20),
}
# Theirs takes minutes.
WHOLE = dict(clients=2, batch=32, steps=2, validation=16)
QUICK = {'SAL to 2 of 4': ((1, 1, 2), (2, 2))}


def ours(
  args, shape: str, stages: list[Stage], validation: int
) -> Callable[[], object]:
  """Runs the stages from the start, columns and all, each time it is called;
  all clients take part in every round."""
  model = small_vit.backbone(shape, args.dtype, args.unroll)
  data = small_vit.federation(
    shape, args.clients, args.steps * args.batch, validation
  )
  start = small_vit.start(model)
  how = Options(
    cohort=args.clients,
    batch_size=args.batch,
    steps=args.steps,
    validation_rows=validation,
  )

  def run():
    simulation = driver.Simulation(
      data,
      start,
      stages,
      how,
      run_store=run_store.Memory(),
      observer=observer.Silent(),
    )
    return simulation.run().roles

  return run


def main(argv: list[str] | None = None) -> None:
  """Measures a dense round, and whole runs."""
  memory.keep_memory()
  parser = argparse.ArgumentParser(prog='versus_torch')
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--torch', default=sys.executable)
  parser.add_argument('--only', default='')
  parser.add_argument('--shape', default='ti4', choices=small_vit.SHAPES)
  parser.add_argument('--dtype', default='float32')
  sizes = dict(clients=2, batch=32, steps=5, turns=5, unroll=12)
  for name, default in sizes.items():
    parser.add_argument(f'--{name}', type=int, default=default)
  args = parser.parse_args(argv)
  shape, runs, args.validation = args.shape, RUNS, 8
  if args.quick:
    shape, runs = 'quick', QUICK
    args.clients, args.batch, args.steps, args.turns = 2, 8, 2, 2
  if args.torch == sys.executable and not all(
    map(importlib.util.find_spec, ('torch', 'transformers', 'peft'))
  ):
    timing.row(missing='torch, transformers or peft; see --torch')
    return
  if args.only in 'dense round':
    dense(args, shape)
  if not args.quick:
    vars(args).update(WHOLE)
  for name, depths in runs.items():
    name = f'whole run, {name}'
    if args.only in name:
      whole(args, shape, name, *depths)


def options(args, shape: str) -> dict[str, int]:
  """What `peers/torch_lora.py` is told."""
  names = ('blocks', 'width', 'heads', 'image', 'patch')
  sizes = dict(zip(names, small_vit.SHAPES[shape], strict=True))
  return sizes | {
    'clients': args.clients,
    'steps': args.steps,
    'batch': args.batch,
    'dtype': args.dtype,
  }


def dense(args, shape: str) -> None:
  """FedAvg of LoRA in all blocks. Ours runs some rounds at a time and counts
  them: it keeps a round in flight."""
  rounds, blocks = 2, small_vit.SHAPES[shape][0]
  model = small_vit.backbone(shape, args.dtype, args.unroll)
  algorithm, _ = small_vit.algorithms(model)
  stages = [small_vit.stage(algorithm, [blocks] * rounds, blocks)]
  worker = timing.Worker(args.torch, SCRIPT, **options(args, shape))

  def their_rounds():
    for _ in range(rounds):
      worker()

  variants = {'ours': ours(args, shape, stages, 1), 'torch': their_rounds}
  report('dense round', timing.in_turns(variants, args.turns), rounds)
  worker.close()


def whole(args, shape: str, name: str, first, second) -> None:
  """Both stages of FedMS."""
  blocks = small_vit.SHAPES[shape][0]
  model = small_vit.backbone(shape, args.dtype, args.unroll)
  algorithms = small_vit.algorithms(model)
  stages = [
    small_vit.stage(algorithm, depths, blocks)
    for algorithm, depths in zip(algorithms, (first, second), strict=True)
  ]
  worker = timing.Worker(
    args.torch,
    SCRIPT,
    **options(args, shape),
    validation=args.validation,
    first=','.join(map(str, first)),
    second=','.join(map(str, second)),
  )
  variants = {
    'ours': ours(args, shape, stages, args.validation),
    'torch': worker,
  }
  variants['ours']()  # compiles; theirs has nothing to warm up
  turns = max(1, args.turns // 3)
  report(name, timing.in_turns(variants, turns, 0), 1)
  worker.close()


def report(what: str, seconds: dict[str, list[float]], units: int) -> None:
  """Prints a row."""
  timing.row(
    what=what,
    cores=timing.cores(),
    seconds={k: v / units for k, v in timing.medians(seconds).items()},
    speedup=timing.ratio(seconds, 'torch', 'ours'),
  )


if __name__ == '__main__':
  main()
