"""What does a round cost the host, from a thousand clients to a million?

    python -m benchmarks.population [--quick] [--clients=1000,10000,...]
      [--cohort=1000] [--rounds=10] [--width=16]

A fixed cohort is sampled from N clients with personal state on disk (stage 2
of FedMS on a very small model, all clients of a round in one program; with
the width D grows the personal state). Each N
runs in a process of its own. Seconds are per round, medians:

host: all but the spans that wait for the device; `host_microseconds` is that
per sampled client. device: local training, scoring and the server's step.
sample, gather, scatter: the cohort with its batches, and the personal states
read from and written to the disk until they would survive a loss of power,
each measured by itself; in a run a thread reads ahead and one writes behind.
evaluate: the final evaluation, of 200 clients. setup: once, to deal the rows.
Each N is compared with the smallest that has ten times the cohort: a cohort of
everybody is another case.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import small_vit, timing

EACH = 6  # rows of a client: 3 to train on, 1 to validate, 2 to test
WARM_UP = 3
SIDE, PATCH = 8, 4


def main(argv: list[str] | None = None) -> None:
  """Measures each population in a child process."""
  parser = argparse.ArgumentParser(prog='population')
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--clients', default='1000,10000,100000,1000000')
  parser.add_argument('--cohort', type=int, default=1000)
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--width', type=int, default=16)
  parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.child:
    timing.row(
      **measure(int(args.clients), args.cohort, args.rounds, args.width)
    )
    return
  if args.quick:
    args.clients, args.cohort, args.rounds = '500', 50, 3
  populations = sorted(int(part) for part in args.clients.split(','))
  rows = {n: run_child(n, args) for n in populations}
  first = next((n for n in populations if n >= 10 * args.cohort), None)
  for row in rows.values():
    if first:
      row['host_ratio'] = row['host_seconds'] / rows[first]['host_seconds']
    timing.row(**row)


def run_child(clients: int, args) -> dict:
  """The row of one population."""
  import json

  command = [sys.executable, '-m', 'benchmarks.population', '--child']
  command += [f'--clients={clients}', f'--cohort={args.cohort}']
  command += [f'--rounds={args.rounds}', f'--width={args.width}']
  done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def federation(clients: int):
  """Random images, dealt evenly; each client's rows lie side by side."""
  import numpy as np

  from fedms_jax.core.types import Table
  from fedms_jax.data import federation as federations
  from fedms_jax.data import sources

  rng, count, side = np.random.default_rng(0), clients * EACH, SIDE
  columns = {
    'inputs': rng.integers(0, 256, (count, side, side, 3), np.uint8),
    'labels': rng.integers(0, small_vit.CLASSES, count, np.int32),
  }
  names = tuple(map(str, range(small_vit.CLASSES)))
  rows = np.arange(count)
  source = sources.Source(Table(columns, names), rows, rows[:0])
  start = time.perf_counter()
  dealt = federations.by_client(
    federations.build(
      source, num_clients=clients, name='iid', min_rows=EACH, public_fraction=0
    )
  )
  return dealt, time.perf_counter() - start


def measure(clients: int, cohort: int, rounds: int, width: int) -> dict:
  """One population: the numbers of its row."""
  import jax

  from fedms_jax.cluster import memory
  from fedms_jax.persistence import client_store, run_store
  from fedms_jax.simulation import driver, evaluation, observer, timeline
  from fedms_jax.simulation.state import Options

  class OnDisk(run_store.Memory):
    """Personal state on disk, without checkpoints."""

    def _open(self, name, initial):
      return client_store.ClientStore(initial, folder / name)

  memory.keep_memory()
  small_vit.SHAPES['population'] = (2, width, 2, SIDE, PATCH)
  model = small_vit.backbone('population')
  data, setup = federation(clients)
  data = evaluation.limited(data, 64, 0)
  before, _ = small_vit.roles(model)
  _, algorithm = small_vit.algorithms(model)
  depths = [1] * (rounds + WARM_UP + 1)
  stage = small_vit.stage(algorithm, depths, model.blocks)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    keep = OnDisk()
    simulation = driver.Simulation(
      data,
      before,
      [stage],
      Options(
        cohort=cohort,
        batch_size=3,
        clients='vmap',
        scope='step',
        prefetch=False,
        validation_rows=1,
      ),
      run_store=keep,
      observer=observer.Silent(),
    )
    with timeline.Timeline(WARM_UP).measuring() as line:
      state = simulation.run()
    spans = line.seconds[stage.name]
    store = keep.store(stage.name, state.roles.personal)
    pieces = measure_pieces(simulation, store, rounds)
    for _ in range(2):  # the first one compiles
      start = time.perf_counter()
      evaluation.evaluate(simulation, state, evaluation.Scope())
      evaluated = time.perf_counter() - start
    assert isinstance(store, client_store.ClientStore)  # LoRA is personal
    touched = len(store.touched())
    keep.close()
    disk = sum(p.stat().st_blocks * 512 for p in folder.rglob('*.mdb'))

  device = ('train', 'evaluate', 'reduce', 'columns')
  waits = [sum(s.get(name, 0.0) for name in device) for s in spans]
  host = [s['round'] - w for s, w in zip(spans, waits, strict=True)]
  return {
    'clients': clients,
    'cohort': cohort,
    'host_seconds': statistics.median(host),
    'host_microseconds': 1e6 * statistics.median(host) / cohort,
    'device_seconds': statistics.median(waits),
    **pieces,
    'evaluate_seconds': evaluated,
    'setup_seconds': setup,
    'personal_bytes': sum(
      x.size * x.dtype.itemsize for x in jax.tree.leaves(state.roles.personal)
    ),
    'touched': touched,
    'disk_megabytes': disk / 1e6,
    'peak_gigabytes': peak_bytes() / 2**30,
  }


def measure_pieces(simulation, store, rounds: int) -> dict[str, float]:
  """Median seconds of each piece of the host's work by itself."""
  sample, arrivals = simulation.sampler(0)
  found: dict[str, list[float]] = {}

  def timed(name, function, *args):
    start = time.perf_counter()
    out = function(*args)
    found.setdefault(name, []).append(time.perf_counter() - start)
    return out

  def scatter(ids, states, version):
    store.scatter(ids, states, version)
    store.collect(version)
    store.flush()

  for t in range(rounds):
    ids = timed('sample_seconds', sample, arrivals.init, 1000 + t).ids
    states = timed('gather_seconds', store.gather, ids)
    timed('scatter_seconds', scatter, ids, states, store.version + 1)
  return {name: statistics.median(times) for name, times in found.items()}


def peak_bytes() -> float:
  """The most memory that this process ever had."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  main()
