"""The questions of `benchmarks.accelerator` that are no benchmark of their own.

python -m benchmarks.on_device <question> <shape> [--clients=8]
  [--batch=32] [--depths=12,1,2,6] [--dtype=bfloat16]
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import real_models, small_vit, timing, utilization
from fedms_jax.core import compile, rounds, tree
from fedms_jax.core.columns import shapes
from fedms_jax.core.types import Passes
from fedms_jax.simulation import derivation, needs, observer
from fedms_jax.simulation.cohorts import Cohort
from fedms_jax.systems import cost, ledger

STEPS = 2  # of a client in a round
WARM_UP, ROUNDS = 3, 10
TOLERANCES = {'float32': 1e-3, 'bfloat16': 3e-2}  # of losses, relative
FEW = 4  # clients of the step that is compared


def device(args) -> None:
  """What this machine has."""
  first = jax.devices()[0]
  stats = first.memory_stats() or {}
  timing.row(
    device=first.device_kind,
    platform=first.platform,
    devices=len(jax.devices()),
    cores=timing.cores(),
    jax=jax.__version__,
    memory_gigabytes=stats.get('bytes_limit', 0) / 2**30,
  )


def stepped(args) -> tuple[np.ndarray, np.ndarray]:
  """(losses [K], all updates as one vector) of a step on this back-end."""
  made = real_models.setup(args.shape, args.dtype)
  loss, update = real_models.one_step(made, FEW, min(args.batch, 8))
  flat = [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(update)]
  return loss, np.concatenate(flat)


def reference(args) -> None:
  """The step in float32, into a file: what `correct` compares with."""
  loss, update = stepped(args)
  np.savez(args.file, loss=loss, update=update)


def correct(args) -> None:
  """A step here against that of a CPU in float32."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'reference.npz'
    command = [sys.executable, '-m', 'benchmarks.on_device', 'reference']
    command += [args.shape, '--dtype=float32', f'--batch={args.batch}']
    subprocess.run(
      [*command, f'--file={file}'],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      check=True,
    )
    wanted = dict(np.load(file))
  loss, update = stepped(args)
  error = float(np.max(np.abs(loss / wanted['loss'] - 1.0)))
  norms = np.linalg.norm(update) * np.linalg.norm(wanted['update'])
  timing.row(
    shape=args.shape,
    dtype=args.dtype,
    loss=float(loss.mean()),
    loss_error=error,
    update_cosine=float(update @ wanted['update'] / norms),
    correct=bool(error < TOLERANCES[args.dtype]),
  )


class Watch(observer.Silent):
  """When each round's numbers were there."""

  def __init__(self):
    self.times: list[float] = []

  def round(self, record):
    self.times.append(time.perf_counter())


def rounds_of(args) -> None:
  """Rounds a second at each depth, once all is compiled and derived;
  utilization is of the rate of one large matrix product."""
  made = real_models.setup(args.shape, args.dtype)
  product = utilization.square(args.dtype, args.shape.endswith('quick'))
  rate = product.flops / min(timing.in_turns({'': product}, 5)[''])
  for depth in args.depths:
    watch = Watch()
    run = real_models.simulation(
      made, args.clients, args.batch, STEPS, [depth] * (WARM_UP + ROUNDS), watch
    )
    jax.block_until_ready(run.run().roles.shared)
    seconds = (watch.times[-1] - watch.times[WARM_UP - 1]) / ROUNDS
    speed = _flops(made, args, depth) / seconds
    timing.row(
      shape=args.shape,
      clients=args.clients,
      depth=depth,
      rounds_per_second=1.0 / seconds,
      clients_per_second=args.clients / seconds,
      tflops_per_second=speed / 1e12,
      utilization=speed / rate,
    )


def _flops(made, args, depth: int) -> float:
  """Of a round, by the ledger: those of the prefix are not in it."""
  backbone = made.algorithm.backbone
  plan = small_vit.top(backbone.blocks, depth)
  blocks = jax.eval_shape(
    lambda: made.algorithm.begin(jax.random.key(0), made.start)
  ).shared['blocks']
  lora = cost.lora_flops(blocks, backbone.cost.tokens)
  examples = args.clients * STEPS * args.batch
  return cost.simulator_flops(
    backbone.cost, Passes(), plan, lora,
    examples=examples, derived=0, scope='run',
  )  # fmt: skip


def memory(args) -> None:
  """Of a local step of all clients, at each depth."""
  made = real_models.setup(args.shape, args.dtype)
  algorithm = made.algorithm
  begin = compile.jit(light=True)(algorithm.begin)
  roles = jax.eval_shape(begin.program(), jax.random.key(0), made.start)
  meter = ledger.Meter(algorithm, roles, batch=args.batch, slots=2)
  for depth in sorted(args.depths):  # what is most only rises
    plan = small_vit.top(algorithm.backbone.blocks, depth)
    step = needs.training(_scene(made, roles, plan, args), plan, args.clients)
    compiled = rounds.step_chunk.program().lower(*step.step).compile()
    found = compiled.memory_analysis()
    before = _peak()
    run = real_models.simulation(
      made, args.clients, args.batch, STEPS, [depth] * 2
    )
    jax.block_until_ready(run.run().roles.shared)
    timing.row(
      shape=args.shape,
      clients=args.clients,
      depth=depth,
      xla_gigabytes=found.temp_size_in_bytes / 2**30 if found else 0.0,
      planned_gigabytes=meter.memory(plan, args.clients) / 2**30,
      base_gigabytes=tree.nbytes(roles.frozen) / 2**30,
      most_gigabytes=_peak() / 2**30 if _peak() > before else 0.0,
    )


def _scene(made, roles, plan, args) -> needs.Scene:
  """What a chunk of clients is compiled for."""
  raw = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in made.raw.items()
  }
  shared = roles._replace(personal=None)
  table = raw | shapes(made.algorithm, shared, raw, plan)
  rows = np.zeros((args.clients, STEPS, args.batch), np.int32)
  none = np.zeros(args.clients, np.int32)
  cohort = Cohort(0, none, none, rows, none, none, rows[:, 0, :1])
  return needs.Scene(made.algorithm, roles, table, cohort, args.clients)


def _peak() -> float:
  stats = jax.devices()[0].memory_stats() or {}
  return float(stats.get('peak_bytes_in_use', 0))


def columns(args) -> None:
  """Deriving the longest prefix, a block of rows at a time."""
  made = real_models.setup(args.shape, args.dtype)
  algorithm, blocks = made.algorithm, made.algorithm.backbone.blocks
  begin = compile.jit(light=True)(algorithm.begin)
  roles = begin(jax.random.key(0), made.start)._replace(personal=None)
  raw = jax.tree.map(lambda x: jnp.asarray(x[:256]), made.raw)
  plan = small_vit.top(blocks, 1)

  def derive():
    return derivation.derive(algorithm, roles, raw, plan)

  seconds = timing.medians(timing.in_turns({'derive': derive}, 5))['derive']
  backbone = algorithm.backbone
  flops = (blocks - 1) * backbone.cost.block * 256
  timing.row(
    shape=args.shape,
    rows_per_second=256 / seconds,
    tflops_per_second=flops / seconds / 1e12,
  )


QUESTIONS = {
  'device': device,
  'reference': reference,
  'correct': correct,
  'rounds': rounds_of,
  'memory': memory,
  'columns': columns,
}


def main(argv: list[str] | None = None) -> None:
  """Answers one question."""
  parser = argparse.ArgumentParser(prog='on_device')
  parser.add_argument('question', choices=QUESTIONS)
  parser.add_argument('shape', choices=real_models.SHAPES)
  parser.add_argument('--clients', type=int, default=8)
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument(
    '--depths',
    type=lambda text: list(map(int, text.split(','))),
    default=[12, 1, 2, 6],
  )
  parser.add_argument('--dtype', default='bfloat16', choices=TOLERANCES)
  parser.add_argument('--file', type=pathlib.Path)
  args = parser.parse_args(argv)
  QUESTIONS[args.question](args)


if __name__ == '__main__':
  main()
