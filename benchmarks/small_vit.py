"""What the benchmarks run: ViT shapes with LoRA, on random images.

Times do not depend on what images show, nor on what weights have learned.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedms_jax import schedules
from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms
from fedms_jax.core import client, compile
from fedms_jax.core.contract import Algorithm, Moment, Start
from fedms_jax.core.types import (
  Backbone,
  Federation,
  Partition,
  Plan,
  Roles,
  Table,
)
from fedms_jax.models import gate, tasks, transformer, vit
from fedms_jax.schedules import orders, triggers
from fedms_jax.server import averaged
from fedms_jax.simulation.state import Stage

CLASSES = 10
TARGETS, RANK, ALPHA = ('attn/q', 'attn/v'), 8, 16.0
# name -> blocks, width, heads, image side, patch side.
SHAPES = {
  'ti4': (12, 192, 3, 32, 4),
  'b16': (12, 768, 12, 224, 16),
  'quick': (4, 64, 2, 32, 8),
}
LEARNING_RATE = 1e-3


def options(name: str, argv: Sequence[str] | None) -> argparse.Namespace:
  """The options of a benchmark of one step: quick, shape, dtype, batch and
  turns."""
  parser = argparse.ArgumentParser(prog=name)
  parser.add_argument('--quick', action='store_true')
  parser.add_argument('--shape', default='ti4', choices=SHAPES)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--turns', type=int, default=15)
  args = parser.parse_args(argv)
  if args.quick:
    args.shape, args.batch, args.turns = 'quick', 8, 3
  return args


def backbone(shape: str, dtype: str = 'float32', unroll: int = 3) -> Backbone:
  """A ViT of one of `SHAPES`. unroll: as `--model.unroll`."""
  blocks, width, heads, image, patch = SHAPES[shape]
  config = transformer.TransformerConfig(
    blocks=blocks,
    width=width,
    heads=heads,
    mlp_width=4 * width,
    dtype=dtype,
    unroll=unroll,
  )
  return vit.backbone(vit.VitConfig(config, image, 3, patch, CLASSES))


def columns(shape: str, rows: int) -> dict[str, np.ndarray]:
  """Raw columns of random images."""
  rng, side = np.random.default_rng(0), SHAPES[shape][3]
  return {
    'inputs': rng.integers(0, 256, (rows, side, side, 3)).astype(np.uint8),
    'labels': rng.integers(0, CLASSES, rows).astype(np.int32),
  }


def algorithms(model: Backbone) -> tuple[Algorithm, Algorithm]:
  """Both stages of FedMS, with Adam."""
  setting = fedms.Setting(
    model,
    tasks.classification(),
    optax.adam(LEARNING_RATE),
    optax.sgd(1.0),
    averaged.mean(),
    lora.Spec(RANK, ALPHA, TARGETS),
  )
  choice = fedms.Personal(
    gate.GateSpec(model.width, CLASSES), local_loss='mixture'
  )
  return fedms.global_stage(setting), fedms.personal_stage(setting, choice)


def start(model: Backbone) -> Roles:
  """The roles before stage 1, of random weights."""
  keys = jax.random.split(jax.random.key(0), 2)
  return fedms.start(
    compile.jit(light=True)(model.init)(keys[0]),
    compile.jit(light=True)(model.init_head)(keys[1]),
  )


def roles(model: Backbone) -> tuple[Roles, Roles]:
  """The roles at the beginning of both stages."""
  first, second = algorithms(model)
  before = compile.jit(light=True)(first.begin)(jax.random.key(1), start(model))
  return before, compile.jit(light=True)(second.begin)(
    jax.random.key(2), before
  )


def top(blocks: int, depth: int) -> Plan:
  """The plan with the top `depth` blocks active."""
  active = tuple(b >= blocks - depth for b in range(blocks))
  return Plan(active, blocks - depth)


@compile.jit(static=(0, 4))
def _step(algorithm, carry, roles, table, plan):
  rows = jnp.arange(len(table['labels']))
  start = Start(roles, plan, Moment(steps=1))
  key = jax.random.key(0)
  return client.one_step(algorithm, carry, start, table, rows, key)


@compile.jit(static=(0, 3))
def _derived(algorithm, roles, raw, plan):
  return algorithm.columns(roles._replace(personal=None), raw, plan)


@compile.jit(static=(0, 2), light=True)
def _begin(algorithm, roles, plan):
  start = Start(roles, plan)
  return algorithm.update.begin(start), client.zero_sums(algorithm)


def federation(
  shape: str, clients: int, rows: int, validation: int
) -> Federation:
  """Clients with so many rows to train on and to validate; 1 to test."""
  each = rows + validation + 1
  places = np.arange(clients * each, dtype=np.int32).reshape(clients, each)

  def part(start, stop):
    offsets = np.arange(clients + 1, dtype=np.int64) * (stop - start)
    return Partition(offsets, places[:, start:stop].ravel())

  test = part(each - 1, each)
  none = Partition(np.zeros(1, np.int64), np.zeros(0, np.int32))
  table = Table(columns(shape, places.size), tuple(map(str, range(CLASSES))))
  return Federation(
    table,
    part(0, rows),
    part(rows, each - 1),
    test,
    none,
    test.rows,
    none.rows,
  )


def stage(algorithm: Algorithm, depths: Sequence[int], blocks: int) -> Stage:
  """Rounds with the top blocks active, so many in each."""
  order = orders.order('top_down', blocks, 0)
  trigger = triggers.manual(depths, blocks)
  return Stage(
    algorithm.name,
    algorithm,
    len(depths),
    lambda handover: schedules.schedule(trigger, order),
  )


class Step:
  """One local step on a batch; call it to run it.

  raw: columns of the batch. derive: look derived columns up, as a run does;
  else the step computes them.
  """

  def __init__(
    self, algorithm: Algorithm, roles: Roles, raw, plan: Plan, derive=True
  ):
    table = jax.tree.map(jnp.asarray, raw)
    if derive:
      table = table | _derived(algorithm, roles, table, plan)
    self._carry = _begin(algorithm, roles, plan)
    self._args = (roles, table, plan)
    self._algorithm = algorithm

  def __call__(self):
    self._carry = _step(self._algorithm, self._carry, *self._args)
    return self._carry

  def flops(self) -> float:
    """What XLA counts in the compiled program; a loop's body counts once."""
    lowered = _step.program().lower(self._algorithm, self._carry, *self._args)
    return float((lowered.compile().cost_analysis() or {}).get('flops', 0))


def one_by_one(model: Backbone) -> Backbone:
  """The model with a span per block, so that no loop hides its FLOPs."""

  def run(spans, x, mask, reads=None, **adapter):
    for span in spans:
      for at in range(span.start, span.stop):
        i = at - span.start
        block = jax.tree.map(lambda p, i=i: p[i : i + 1], span.params)
        one = span._replace(start=at, stop=at + 1, params=block)
        # As `transformer.run` does where the span is a loop.
        last = at + 1 == model.blocks and span.start > 0
        own = {'reads': reads} if last else {}
        x = model.run([one], x, mask, **own, **adapter)
    return x

  return model._replace(run=run)
