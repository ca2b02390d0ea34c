"""FedAvg of LoRA on models of real shapes, with random weights and inputs.

Nothing here reads a file, so that a machine needs JAX, Flax and optax alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import small_vit
from fedms_jax.adapters import lora
from fedms_jax.algorithms import fedms
from fedms_jax.core import compile, reduction, rounds
from fedms_jax.core.contract import Algorithm, Clients, Moment, Work
from fedms_jax.core.types import Federation, Partition, Roles, Table
from fedms_jax.models import pretrained, tasks
from fedms_jax.models.family import Options
from fedms_jax.persistence import run_store
from fedms_jax.server import averaged
from fedms_jax.simulation import driver, observer
from fedms_jax.simulation import state as states

CLASSES, RANK, RATE = 10, 8, 1e-3
_BASE = {
  'num_hidden_layers': 12,
  'hidden_size': 768,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
}
_SMALL = {
  'num_hidden_layers': 4,
  'hidden_size': 32,
  'num_attention_heads': 2,
  'intermediate_size': 64,
}
_IMAGES = {'model_type': 'vit', 'image_size': 224, 'patch_size': 16}
_TEXTS = {'model_type': 'bert', 'max_position_embeddings': 512}
# name -> config.json.
SHAPES: dict[str, dict[str, Any]] = {
  'vit-b16': _IMAGES | _BASE,
  'bert-base': _TEXTS | _BASE | {'vocab_size': 30522},
  'vit-quick': _IMAGES | _SMALL | {'image_size': 32, 'patch_size': 8},
  'bert-quick': _TEXTS | _SMALL | {'vocab_size': 100},
}
TOKENS = {'bert-base': 128, 'bert-quick': 12}
ROWS = 1024  # of the table; clients share them, for what they show is noise


class Setup(NamedTuple):
  """A run's algorithm, its first roles, and the columns of its rows."""

  algorithm: Algorithm
  start: Roles
  raw: dict[str, np.ndarray]


def setup(name: str, dtype: str) -> Setup:
  """FedAvg of LoRA of rank 8 on queries and values, and of a head, with
  Adam; name: of `SHAPES`."""
  config, tokens = SHAPES[name], TOKENS.get(name, 0)
  options = Options(classes=CLASSES, tokens=tokens, dtype=dtype)
  backbone = pretrained.model(config, options).backbone
  setting = fedms.Setting(
    backbone,
    tasks.classification(),
    optax.adam(RATE),
    optax.sgd(1.0),
    averaged.mean(),
    lora.Spec(RANK, 2.0 * RANK, ('attn/q', 'attn/v')),
    residual=False,
  )
  return Setup(
    fedms.global_stage(setting), small_vit.start(backbone), raw(name)
  )


def raw(name: str) -> dict[str, np.ndarray]:
  """Columns of random rows."""
  rng, config = np.random.default_rng(0), SHAPES[name]
  labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
  if name in TOKENS:
    words = rng.integers(1, config['vocab_size'], (ROWS, TOKENS[name]))
    return {'inputs': words.astype(np.int32), 'labels': labels}
  side = config['image_size']
  images = rng.integers(0, 256, (ROWS, side, side, 3), np.uint8)
  return {'inputs': images, 'labels': labels}


def federation(columns, clients: int, each: int) -> Federation:
  """Clients with so many rows to train on, and one to validate and test."""
  places = np.arange(clients * (each + 2), dtype=np.int32) % ROWS
  places = places.reshape(clients, each + 2)

  def part(start: int, stop: int) -> Partition:
    offsets = np.arange(clients + 1, dtype=np.int64) * (stop - start)
    return Partition(offsets, places[:, start:stop].ravel())

  none = Partition(np.zeros(1, np.int64), np.zeros(0, np.int32))
  test = part(each + 1, each + 2)
  names = tuple(map(str, range(CLASSES)))
  return Federation(
    Table(columns, names),
    part(0, each),
    part(each, each + 1),
    test,
    none,
    test.rows,
    none.rows,
  )


def simulation(
  made: Setup,
  clients: int,
  batch: int,
  steps: int,
  depths: Sequence[int],
  watch: observer.Silent | None = None,
) -> driver.Simulation:
  """A run of all clients in each round, with so many top blocks active."""
  blocks = made.algorithm.backbone.blocks
  return driver.Simulation(
    federation(made.raw, clients, steps * batch),
    made.start,
    [small_vit.stage(made.algorithm, depths, blocks)],
    states.Options(
      cohort=clients,
      batch_size=batch,
      steps=steps,
      validation_rows=1,
      validate_every=1_000_000,
    ),
    run_store=run_store.Memory(),
    observer=watch or observer.Silent(),
  )


def one_step(made: Setup, clients: int, batch: int):
  """(losses of clients [K], what is sent, added up) of one local step of all
  blocks of all clients at once."""
  algorithm = made.algorithm
  plan = small_vit.top(algorithm.backbone.blocks, algorithm.backbone.blocks)
  begin = compile.jit(light=True)(algorithm.begin)
  roles, _, channel = reduction.begin(
    algorithm, begin(jax.random.key(1), made.start), 0
  )
  raw = jax.tree.map(jnp.asarray, made.raw)
  table = raw | algorithm.columns(roles._replace(personal=None), raw, plan)
  work = Work(table, jax.random.key(2), Moment(0, 0, 0, 0), channel)
  rows = np.arange(clients * batch, dtype=np.int32) % ROWS
  its = Clients(
    np.arange(clients, dtype=np.uint32),
    jax.tree.map(lambda x: jnp.stack([x] * clients), roles.personal),
    rows.reshape(clients, 1, batch),
    np.ones(clients, np.float32),
  )
  totals = reduction.empty(algorithm, roles)
  totals, _, sums = rounds.train(algorithm, plan, roles, work, totals, its)
  loss = np.asarray(sums['loss'])
  return loss[:, 0] / loss[:, 1], jax.device_get(totals.update)
