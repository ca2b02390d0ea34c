"""What do more devices give, and what do they tell each other?

    python -m benchmarks.devices [--quick] [--devices=1,2,4,8] [--shape=ti4]
      [--clients=8] [--batch=4] [--steps=2] [--depth=2] [--turns=5]

Rounds of stage 1 of FedMS (ViT-Ti/4, LoRA in the top blocks) with the clients
spread over so many devices of one process: those of an accelerator, or a CPU
that poses as several. Each number of devices is a process of its own, and the
processes work in turns. `speedup` is relative to the first number; devices of
a CPU share its cores, so that there it shows what spreading costs. `difference`
is the largest distance of the shared parameters after the last round from
those of the first number, relative to the largest parameter. `training` and
`round` count collectives in the compiled programs of a chunk of clients, and
of the reduction that ends a round.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import sys
import tempfile

import numpy as np

from benchmarks import small_vit, timing

ROUNDS = 2  # of a unit of work
COLLECTIVES = re.compile(
  r' (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)'
  r'(?:-start)?\('
)


def main(argv: list[str] | None = None) -> None:
  """Measures each number of devices in a process of its own."""
  parser = argparse.ArgumentParser(prog='devices')
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--devices', default='1,2,4,8')
  parser.add_argument('--shape', default='ti4', choices=small_vit.SHAPES)
  sizes = dict(clients=8, batch=4, steps=2, depth=2, turns=5)
  for name, default in sizes.items():
    parser.add_argument(f'--{name}', type=int, default=default)
  parser.add_argument('--child', default='', help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.child:
    serve(args)
    return
  if args.quick:
    args.devices, args.shape, args.turns = '1,4', 'quick', 2
  counts = [int(part) for part in args.devices.split(',')]
  with tempfile.TemporaryDirectory() as name:
    compare(counts, args, pathlib.Path(name))


def compare(counts: list[int], args, folder: pathlib.Path) -> None:
  """A row for each number of devices."""
  names = ('shape', 'clients', 'batch', 'steps', 'depth')
  same = {name: getattr(args, name) for name in names}
  workers = {
    str(n): timing.Worker(
      sys.executable,
      '-mbenchmarks.devices',
      devices=n,
      child=folder / f'{n}.npz',
      **same,
    )
    for n in counts
  }
  seconds = timing.in_turns(workers, args.turns, 1)
  for worker in workers.values():
    worker.close()
  found = {n: np.load(folder / f'{n}.npz') for n in workers}
  first = str(counts[0])
  reference = found[first]['shared']
  for n, values in found.items():
    distance = np.abs(values['shared'] - reference).max()
    timing.row(
      devices=int(n),
      cores=timing.cores(),
      rounds_per_second=ROUNDS / timing.medians(seconds)[n],
      speedup=timing.ratio(seconds, first, n),
      difference=float(distance / np.abs(reference).max()),
      training=str(values['training']),
      round=str(values['round']),
    )


def serve(args) -> None:
  """Rounds on so many devices, for each line that is read."""
  import jax

  count = int(args.devices)
  if os.environ.get('JAX_PLATFORMS', '').startswith('cpu'):
    jax.config.update('jax_num_cpu_devices', count)
  from fedms_jax.cluster import memory
  from fedms_jax.cluster.placement import Placement
  from fedms_jax.persistence import run_store
  from fedms_jax.simulation import driver, observer
  from fedms_jax.simulation.state import Options

  memory.keep_memory()
  model = small_vit.backbone(args.shape)
  algorithm, _ = small_vit.algorithms(model)
  rows = args.steps * args.batch
  data = small_vit.federation(args.shape, args.clients, rows, 1)
  stage = small_vit.stage(algorithm, [args.depth] * ROUNDS, model.blocks)
  start, place = small_vit.start(model), Placement(count)
  how = Options(
    cohort=args.clients,
    batch_size=args.batch,
    steps=args.steps,
    validation_rows=1,
    clients='chunk',
    chunk=args.clients,
  )

  def run():
    return driver.Simulation(
      data,
      start,
      [stage],
      how,
      run_store=run_store.Memory(),
      observer=observer.Silent(),
      place=place,
    ).run()

  print('ready', flush=True)
  for _ in sys.stdin:
    state = run()
    jax.block_until_ready(state.roles)
    print('done', flush=True)
  leaves = [np.ravel(x) for x in jax.tree.leaves(state.roles.shared)]
  plan = small_vit.top(model.blocks, args.depth)
  texts = programs_of(algorithm, state.roles, data, plan, place, args)
  np.savez(
    args.child,
    shared=np.concatenate(leaves),
    training=collectives(texts[0]),
    round=collectives(texts[1]),
  )


def programs_of(algorithm, roles, data, plan, place, args) -> tuple[str, str]:
  """The compiled text of a chunk's training and of a round's reduction."""
  import jax

  from fedms_jax.core import meshes, reduction, rounds
  from fedms_jax.core.contract import Clients, Work
  from fedms_jax.simulation import needs

  if place.mesh is None:
    return '', ''
  count = args.clients
  table = {k: v[:count] for k, v in data.table.columns.items()}
  clients = place.split(
    Clients(
      np.arange(count, dtype=np.uint32),
      {},
      np.zeros((count, args.steps, args.batch), np.int32),
      np.ones(count, np.float32),
    )
  )
  totals = place.empty(reduction.empty(algorithm, roles))
  roles, table = place.whole((roles, table))
  work = Work(table, jax.random.key(0))
  given = needs.arguments(
    algorithm, plan, roles, work, totals, clients, mesh=place.mesh
  )
  trained = rounds.step_chunk.program().lower(*given.step)
  added = meshes.add_devices.program().lower(totals, place.mesh)
  return _compiled(trained), _compiled(added)


def _compiled(lowered) -> str:
  """The text of a program as the device gets it; '' if it does not tell."""
  return lowered.compile().as_text() or ''


def collectives(text: str) -> str:
  """How often each collective occurs, such as `1 all-reduce`."""
  found = COLLECTIVES.findall(text)
  counts = [f'{found.count(name)} {name}' for name in sorted(set(found))]
  return ', '.join(counts) or 'none'


if __name__ == '__main__':
  main()
