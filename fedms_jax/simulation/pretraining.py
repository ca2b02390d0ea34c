"""Pre-training by the server on public rows (phase 1 of arXiv 2305.11414)."""

from __future__ import annotations

import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import client, compile, metrics, seeds
from fedms_jax.core.contract import Algorithm, Moment, Start
from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation, Plan, Roles, Tree
from fedms_jax.data import draws, lazy
from fedms_jax.simulation.tables import Tables


def train(
  algorithm: Algorithm,
  federation: Federation,
  before: Roles,
  blocks: int,
  *,
  epochs: int,
  batch_size: int,
  seed: int,
  observer,
) -> Tree:
  """The shared tree of an algorithm, trained by the server.

  algorithm: trains all weights, or a head (`algorithms/full.py`, `probe.py`).
  It runs as one client whose rows are the public ones, one compiled pass per
  epoch; its derived columns are computed once.
  """
  public = federation.public
  plan = Plan((True,) * blocks, 0)
  key = seeds.stream(seed, Stream.PRETRAIN)
  roles = algorithm.begin(key, before)
  if not epochs or not len(public):
    return roles.shared
  raw = lazy.take(federation.table.columns, public)
  rows = np.arange(len(public))
  table, _ = Tables(raw, scope='run').view(algorithm, roles, rows, plan)
  carry = _begin(algorithm, roles, plan)
  steps = steps_per_epoch(len(public), batch_size)
  observer.stage('pretrain', 0, epochs)
  for epoch in range(epochs):
    start = time.perf_counter()
    rows = _shuffled(len(public), batch_size, seed, epoch)
    carry = _epoch(
      algorithm,
      carry,
      roles,
      table,
      rows,
      key,
      epoch * steps,
      epochs * steps,
      plan,
    )
    sums = jax.device_get(carry[1])
    zeros = {name: np.zeros_like(x) for name, x in sums.items()}
    carry = carry[0], zeros
    observer.round(
      {
        'stage': 'pretrain',
        'round': epoch,
        'train_loss': float(metrics.mean(sums['loss'])),
        'score': float(metrics.mean(sums['score'])),
        'seconds': time.perf_counter() - start,
      }
    )
  message, _ = algorithm.update.finish(carry[0], Start(roles, plan))
  return message.update


def steps_per_epoch(rows: int, batch_size: int) -> int:
  return math.ceil(rows / batch_size)


def _shuffled(count: int, batch_size: int, seed: int, epoch: int):
  """Row numbers [S, B] of an epoch, -1 is padding."""
  order = draws.generator(seed, Stream.SHUFFLE, epoch).permutation(count)
  steps = steps_per_epoch(count, batch_size)
  rows = np.full(steps * batch_size, -1, np.int32)
  rows[:count] = order
  return rows.reshape(steps, batch_size)


@compile.jit(static=(0, 2), light=True)
def _begin(algorithm, roles: Roles, plan):
  """What is carried into the first epoch."""
  state = algorithm.update.begin(Start(roles, plan))
  return state, client.zero_sums(algorithm)


@compile.jit(static=(0, 8), donate=(1,))
def _epoch(
  algorithm, carry, roles: Roles, table: Tree, rows, key, first, total, plan
):
  """All steps of an epoch: carry -> carry; `first` is the first step."""
  start = Start(roles, plan, Moment(steps=total))

  def body(carry, scanned):
    step_rows, number = scanned
    now = client.at_step(start, number)
    return client.one_step(algorithm, carry, now, table, step_rows, key), None

  numbers = first + jnp.arange(rows.shape[0])
  return jax.lax.scan(body, carry, (rows, numbers))[0]
