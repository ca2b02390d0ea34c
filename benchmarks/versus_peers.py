"""How fast is the engine with a user's own model, beside other simulators?

    python -m benchmarks.versus_peers [--quick] [--peers=<name>=<python> ...]
      [--turns=10]

First workload: CIFAR-10 IID of pfl-research (`peers/cifar.py`): FedAvg of all
weights of a small CNN, 50 of 1,000 clients a round. Names: pfl, flower,
fedjax; each runs in an interpreter that has it. Second workload: 32 clients
with LoRA of rank 8 on a frozen ViT of 12 layers; name: torch, an interpreter
with torch, transformers and peft. A name may be given several times.

    python -m venv pfl; pfl/bin/pip install pfl==0.6.0 torch
    python -m venv flower; flower/bin/pip install 'flwr[simulation]' torch
    python -m venv fedjax; fedjax/bin/pip install \\
      git+https://github.com/google/fedjax

Rounds are run in turns, one at a time. `ratio` is the peer's time by ours. A
peer that does not run is named with the reason.
"""

from __future__ import annotations

import argparse
import pathlib

from benchmarks import own_cnn, small_vit, timing, versus_torch
from fedms_jax.cluster import memory

FOLDER = pathlib.Path(__file__).parent / 'peers'
SCRIPTS = {'pfl': 'pfl_cnn', 'flower': 'flower_cnn', 'fedjax': 'fedjax_cnn'}
CLIENTS, STEPS, BATCH = 32, 4, 8  # of the second workload


def peer(text: str) -> tuple[str, str]:
  """(name, interpreter) of `name=interpreter`."""
  name, equals, python = text.partition('=')
  if not equals or name not in (*SCRIPTS, 'torch'):
    raise argparse.ArgumentTypeError(
      f'{text!r} is not <name>=<python>; names: {", ".join(SCRIPTS)}, torch'
    )
  return name, python


def started(name: str, python: str, **options) -> timing.Worker | None:
  """The peer, ready to work; None, and a row that says why, if it is not."""
  script = FOLDER / f'{SCRIPTS.get(name, "torch_lora")}.py'
  try:
    return timing.Worker(python, script, **options)
  except (OSError, RuntimeError) as error:
    timing.row(peer=name, missing=str(error))
    return None


def in_rounds(run, rounds: int):
  """A unit of work of some rounds: ours keeps a round in flight."""

  def unit():
    for _ in range(rounds):
      run()

  return unit


def compare(
  workload: str, ours, workers, rounds: int, turns: int, warm_up: int = 2
) -> None:
  """A row for each simulator."""
  workers = {name: w for name, w in workers.items() if w is not None}
  units = {name: in_rounds(w, rounds) for name, w in workers.items()}
  seconds = timing.in_turns({'ours': ours} | units, turns, warm_up)
  for name in seconds:
    timing.row(
      workload=workload,
      simulator=name,
      cores=timing.cores(),
      seconds_per_round=timing.medians(seconds)[name] / rounds,
      ratio=timing.ratio(seconds, name, 'ours'),
    )
  for worker in workers.values():
    worker.close()


def main(argv: list[str] | None = None) -> None:
  """Compares on both workloads."""
  memory.keep_memory()
  parser = argparse.ArgumentParser(prog='versus_peers')
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--peers', type=peer, nargs='*', default=[])
  parser.add_argument('--turns', type=int, default=10)
  args = parser.parse_args(argv)
  rounds = 1 if args.quick else 4
  turns = 1 if args.quick else args.turns
  workers = {
    name: started(name, python)
    for name, python in args.peers
    if name != 'torch'
  }
  algorithm, data = own_cnn.algorithm(), own_cnn.federation()

  def ours():
    return own_cnn.simulation(algorithm, data, rounds).run().roles

  compare('CIFAR-10 CNN', ours, workers, rounds, turns)
  lora(args, max(1, rounds // 2), max(1, turns // 3))


def lora(args, rounds: int, turns: int) -> None:
  """The second workload."""
  shape, clients = ('quick', 2) if args.quick else ('ti4', CLIENTS)
  args.clients, args.steps, args.batch = clients, STEPS, BATCH
  args.dtype = 'float32'
  args.unroll = blocks = small_vit.SHAPES[shape][0]
  model = small_vit.backbone(shape, unroll=blocks)
  algorithm, _ = small_vit.algorithms(model)
  stages = [small_vit.stage(algorithm, [blocks] * rounds, blocks)]
  workers = {
    name: started(name, python, **versus_torch.options(args, shape))
    for name, python in args.peers
    if name == 'torch'
  }
  ours = versus_torch.ours(args, shape, stages, 1)
  compare(f'LoRA, {clients} clients', ours, workers, rounds, turns, 1)


if __name__ == '__main__':
  main()
